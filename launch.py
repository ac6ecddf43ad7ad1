"""Runs one experiment, or a sweep over one.

    python launch.py --config=experiments/tiny.py --workdir=runs/tiny
    python launch.py --config=experiments/1b_stage1.py:tiny --config.optim.learning_rate=3e-4
    python launch.py --config=experiments/1b_stage1.py:tiny --workers=2
    python launch.py --config=experiments/1b_stage1.py:tiny --sweep=my_sweep.py

--config.KEY=VALUE sets one key of the experiment; keys cannot be invented, and a value must have the key's type. With
--show added, a command prints every key with its value, what it may be, and what the experiment's file says about it.
The same command again continues an unfinished run. Exit code: 0 done, 2 a wrong setting or an unusable file,
130 stopped by Ctrl-C, 143 by SIGTERM, 1 anything else, such as faults that --job=audit_ascend found.
"""

import os
import shlex
import signal
import sys
import traceback

if __name__ == "__main__":
    for _signum in (signal.SIGINT, signal.SIGTERM):  # until `signals.listen`: nothing has begun
        if signal.getsignal(_signum) is not signal.SIG_IGN:
            signal.signal(_signum, lambda signum, _: os._exit(128 + signum))
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        # Arguments, names of files and what is printed are UTF-8, whatever the locale: Python decides at its start.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})

from absl import flags

from moviegen import config as configs, describe, runner, sweep
from moviegen.errors import ConfigError, Found, Stopped
from moviegen.parallel import launcher, signals
from moviegen.storage import files

FLAGS = flags.FLAGS
flags.DEFINE_string("config", None, "Experiment: FILE.py, or FILE.py:name,name=value with arguments that it takes.")
flags.DEFINE_string("job", None, "What to do with it (default: the config's own job): a module of moviegen/jobs.")
flags.DEFINE_string("stage", None, "Only this stage, with --job=demo (default: all in order).")
flags.DEFINE_string("mesh", None, "How the ranks are arranged, data=D,zero=Z,sp=S (default: data=all of them).")
flags.DEFINE_string("workdir", None, "Folder of this run's files (default: runs/ and the experiment's name).")
flags.DEFINE_integer("workers", 1, "Ranks to start on this machine, each a process.", lower_bound=1)
flags.DEFINE_string("sweep", None, "Python file whose sweep() returns a list of {key: value}: one run for each.")
flags.DEFINE_boolean("show", False, "Print the experiment's settings and run nothing.")


def main(argv: list[str]) -> int:
    if {"--help", "-help", "-h"} & set(argv):
        own = FLAGS.module_help(FLAGS.find_module_defining_flag("config"))
        print(f"{__doc__}\n{own}\n\njobs: {', '.join(runner.jobs())}")
        return 0
    argv, overrides = configs.split_overrides(argv)
    try:
        unknown = FLAGS(argv)[1:]
    except flags.Error as error:
        raise ConfigError(f"{str(error).splitlines()[0]} (python launch.py --help lists the flags)") from error
    for name in ("config", "job", "stage", "mesh", "workdir", "sweep"):
        if (FLAGS[name].value or "").startswith("--"):  # the next flag, taken for the value
            raise ConfigError(f"--{name} has no value: write --{name}=VALUE")
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no flag: write --name=value")
    if not FLAGS.config:
        raise ConfigError("no --config: say which experiment, for example --config=experiments/tiny.py")

    ranks = runner.ranks() if launcher.is_rank() else FLAGS.workers
    config = configs.apply_overrides(configs.load(FLAGS.config), overrides)
    if FLAGS.show:
        print(describe.page(config, configs.split_spec(FLAGS.config)[0]))
        return 0
    if (FLAGS.job or config.get("job")) in runner.WITH_STAGES:
        configs.refuse_hidden(config, overrides)
    plan = runner.prepare(config, FLAGS.job, FLAGS.workdir, FLAGS.mesh, FLAGS.stage, ranks)
    if FLAGS.sweep:
        return sweep.run(FLAGS.sweep, plan, FLAGS.workdir, _command(overrides, "job", "stage", "mesh", "workers"))
    if ranks > 1 and not launcher.is_rank():
        runner.forecast(plan)
        command = _command(overrides, "job", "stage", "mesh", "workdir")
        with plan.owned() as lock:
            return launcher.run(command, FLAGS.workers, plan.workdir, plan.record("ranks"), lock)
    runner.run(plan.config, plan.job, plan.workdir, FLAGS.mesh, plan.stage)
    return 0


def _command(overrides: dict[str, str], *names: str) -> list[str]:
    """Returns the command of this script with the same config and overrides, and those of the named flags that were given."""
    given = [f"--{name}={FLAGS[name].value}" for name in names if FLAGS[name].present]
    values = [f"--config.{key}={value}" for key, value in overrides.items()]
    return [os.path.abspath(__file__), f"--config={FLAGS.config}", *values, *given]


def _ended() -> int:
    """Returns the exit code of `main`, once what ended it is told."""
    try:
        return main(sys.argv)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Found as found:
        print(found, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except Stopped as stopped:
        return stopped.code
    except SystemExit as ended:
        return ended.code
    except Exception as error:
        if signals.asked:
            return 128 + signals.asked[0]
        told = files.told(error) if isinstance(error, OSError) else None
        if told is None:
            traceback.print_exc()
            return 1
        print(f"error: {told}; once that is mended, the same command goes on", file=sys.stderr)
        return 2


if __name__ == "__main__":
    signals.listen()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    code = _ended()
    if code in (130, 143):
        how = "" if launcher.is_rank() else f": to go on, run {shlex.join(['python', *sys.argv])}"
        print(f"\nstopped by {signal.Signals(code - 128).name}{how}", file=sys.stderr)
    if code in (130, 143) or (code and launcher.is_rank()):
        # At once: a module that was half imported crashes in an orderly exit, and that of a rank waits for the checkpoint's
        # writer, which waits for the parts of ranks that will end too.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
