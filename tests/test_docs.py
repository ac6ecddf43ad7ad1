"""What README and docs say runs: commands, Python blocks, and the names of files and settings."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import moviegen
from experiments import common
from moviegen import config as configs, runner
from moviegen.data import video
from moviegen.storage import checkpoint

ROOT = Path(__file__).parents[1]
PAGES = {
    p.name: p.read_text(encoding="utf-8") for p in (ROOT / "README.md", ROOT / "BUILD.md", *ROOT.glob("docs/*.md"))
}
FLAGS = {"config", "show", "job", "stage", "mesh", "workdir", "workers", "sweep"}
# Whose names no metric has.
SECTIONS = "data|text|optim|train|ema|valid|loss|sample|evaluate|convert|export|import_weights|average_weights"


def indented(page):
    """The lines of a page's indented blocks that are outside ``` blocks, continued ones joined."""
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def launches():
    """(page, what follows `launch.py` as a list) of every command that starts a run, also of those inside text."""
    for page, text in PAGES.items():
        for line in [*indented(page), *re.findall(r"`(python launch\.py [^`]*)`", text)]:
            words = shlex.split(line, comments=True)
            words = [inner for word in words for inner in (word.split() if "launch.py " in word else [word])]
            if "launch.py" in words and "--help" not in words:
                workers = [w.partition("=")[2] for w in words if w.startswith("--worker_num=")]  # of msrun
                given = words[words.index("launch.py") + 1 :] + [f"--workers={n}" for n in workers]
                yield page, [word for word in given if word != "..."]


LAUNCHES = list(launches())


def test_commands_are_found():
    assert len(LAUNCHES) > 25 and len({page for page, _ in LAUNCHES}) > 8


@pytest.mark.parametrize(("page", "words"), LAUNCHES)
def test_a_command_fits_its_experiment(page, words, monkeypatch):
    """Those of checkpoints.md are run too, below; the others train, sample, or need weights that do not ship."""
    monkeypatch.chdir(ROOT)
    words, overrides = configs.split_overrides(words)
    flags = {word.removeprefix("--").partition("=")[0]: word.partition("=")[2] for word in words}
    assert set(flags) <= FLAGS
    config = configs.apply_overrides(configs.load(flags["config"]), overrides)
    given = (flags.get(name) for name in ("job", "workdir", "mesh", "stage"))
    runner.prepare(config, *given, int(flags.get("workers", 1)))
    start = overrides.get("train.init_from", "")
    # The workdir of a run or something in it, or exported files.
    assert start.startswith("runs/") or Path(start).name == "checkpoints" or not start or start.endswith(".safetensors")


def test_keys_named_in_the_text_exist():
    files = [p for p in sorted(ROOT.glob("experiments/*.py")) if p.name not in ("common.py", "sections.py")]
    known = {key for file in files for key in configs.flat(configs.load(str(file)))}
    known |= {key.rpartition(".")[0] for key in known}
    for page, text in PAGES.items():
        text = text.partition("## Where the values come from")[0]  # behind it are the seed's own keys
        for key in re.findall(rf"`(?:--config\.)?((?:{SECTIONS})\.[a-z_0-9.]+)(?:=[^`]*)?`", text):
            assert key in known or key == "train.csv", f"{page}: {key}"


def test_files_named_in_the_text_exist():
    for page, text in PAGES.items():
        for found in re.findall(r"\b(?:moviegen|tests|experiments|benchmarks|docs)/[\w/.-]*\w/?", text):
            assert (ROOT / found).exists(), f"{page}: {found}"
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert ((ROOT if page in ("README.md", "BUILD.md") else ROOT / "docs") / target).exists(), (
                f"{page}: {target}"
            )


def test_the_table_of_the_readme_has_every_room():
    for room in (ROOT / "moviegen").iterdir():
        assert not (room / "__init__.py").is_file() or f"{room.name}/" in PAGES["README.md"], room.name


def call(*command):
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_help_names_what_the_pages_name():
    code, said = call(sys.executable, "launch.py", "--help")
    assert code == 0
    for flag in re.findall(r"^\| `--(\w+)=", PAGES["configs.md"], re.MULTILINE):
        assert f"--{flag}" in said
    code, said = call("make", "help")
    assert code == 0
    for goal in re.findall(r"^    make (\w+)", "\n".join(PAGES.values()), re.MULTILINE):
        assert f"make {goal} " in said


def test_the_errors_of_the_page_of_configs():
    errors = [line for line in indented("configs.md") if line.startswith("error: ")]
    given = ["--config.optim.learning_rat=1"], ["--config.train.steps=1.5"]
    given = (*given, ["--config.optim.learning_rate=nan", "--config.train.log_every=0"])
    assert errors == [
        call(sys.executable, "launch.py", "--config=experiments/1b_stage1.py:tiny", *wrong)[1].strip()
        for wrong in given
    ]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)


def run_blocks(page, **names):
    """Executes a page's blocks in order; returns what they define beside `names`."""
    for block in blocks(page):
        exec(block, names)  # noqa: S102
    return names


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own from which the package's files are found as from the checkout."""
    for name in ("moviegen", "experiments", "launch.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_is_run_by_a_test_below():
    assert {page for page in PAGES if blocks(page)} == {
        "tae.md", "evaluate.md", "models.md", "checkpoints.md", "configs.md", "text.md", "training.md"
    }  # fmt: skip


def test_the_autoencoder_from_python(here):
    rng = np.random.default_rng(0)
    video.write_mp4("clip.mp4", rng.integers(0, 255, (20, 9, 12, 3), np.uint8).repeat(8, 1).repeat(8, 2), 8)
    names = run_blocks("tae.md")
    for made in ("made.mp4", "long.mp4"):
        frames, fps = video.read(made)
        assert frames.shape == (16, 64, 64, 3) and fps == 8
    image, _ = names["video"].read("clip.mp4", num_frames=1, size=(64, 64))
    mean, _ = names["tae"].encode(names["params"], names["cfg"], names["video"].to_model(image)[None])
    assert mean.shape == (1, 16, 1, 8, 8)
    assert names["tae"].decode(names["params"], names["cfg"], mean, num_frames=1).shape == (1, 3, 1, 64, 64)


def test_the_extractor_of_the_evaluation_page():
    assert run_blocks("evaluate.md")["brightness"](None)(np.zeros((5, 8, 8, 3), np.uint8)).shape == (5, 3)


def test_the_models_from_python():
    names = run_blocks("models.md")
    assert names["velocity"].shape == names["latents"].shape
    assert names["mean"].shape == (1, 16, 2, 8, 8) and names["again"].shape == names["video"].shape


def test_the_prompts_of_the_page_of_text():
    run_blocks("text.md")


def test_the_page_of_configs(here, monkeypatch):
    """Training is left out: it is `moviegen.run` of a config that another test runs."""
    trained = []
    monkeypatch.setattr(moviegen, "run", lambda config, workdir: trained.append(workdir) or {"loss": 0.0})
    names = run_blocks("configs.md")
    Path("half.py").write_text(blocks("configs.md")[0])
    assert configs.load("half.py:width=256").data.width == 256
    assert configs.load("half.py:tiny").train.steps == 3
    assert [configs.apply_overrides(names["base"], override).seed for override in names["sweep"]()] == [1, 2, 1, 2]
    assert len(trained) == 2 and len(set(trained)) == 2


def test_the_page_of_training_makes_what_its_commands_take(here):
    """The commands were tried on it: they take minutes."""
    run_blocks("training.md")
    config = configs.load("experiments/own.py:tiny")
    for name in config.order:
        own = configs.stage(config, name)
        listed = Path(own.data.csv).read_text(encoding="utf-8").splitlines()[1:]
        assert listed and all(Path(own.data.video_folder, line.partition(",")[0]).is_file() for line in listed)
        assert all(Path(folder, "config.json").is_file() for folder in own.text.encoders.values())
    assert {own.data.csv, own.data.validation_csv} == {"train.csv", "heldout.csv"}


def test_the_page_of_checkpoints(here):
    """Its Python on a made-up state, and then its commands on the checkpoint that this left."""
    from moviegen.models.transformer import model as transformer

    config = common.shrink(common.stage("1b", 1)).model
    params = {path: value.asnumpy() for path, value in transformer.init(config, 0).items()}
    trees = dict(params=params, ema=params, m=params, v=params)
    path = next(name for name in params if name.startswith("blocks/"))
    folder = Path("runs/x/checkpoints")
    names = run_blocks("checkpoints.md", **trees, path=path, folder=folder, step=500, n=1, loss=0.5)
    assert names["best"] is None  # `best`, of a folder that does not exist yet
    assert checkpoint.best(folder) == 500
    np.testing.assert_allclose(names["params"][path], params[path], rtol=1e-2)

    commands = [shlex.split(line) for line in indented("checkpoints.md") if line.startswith("python launch.py")]
    assert len(commands) == 3
    for command in commands:
        done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
