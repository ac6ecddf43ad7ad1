"""Samples a video of every prompt of the config."""

from moviegen.errors import ConfigError
from moviegen.parallel import sync
from moviegen.runner import Run
from moviegen.sampling.sampler import Request, Sampler, begin, write


def run(run: Run) -> dict[str, float]:
    """Samples `sample.prompts` with the EMA weights of `sample.checkpoint`, by default the run's own `checkpoints`.

    Writes `samples/NN-prompt.mp4` (H.264) and a contact sheet `.png` for each; a single frame is a PNG alone; and
    `samples/samples.json`, which says how they are made. Every rank of a mesh runs this. Raises ConfigError or DataError
    when prompts, weights or embeddings of a prompt are missing.
    """
    settings, folder = run.config.sample, run.workdir / "samples"
    if not settings.prompts:
        raise ConfigError("sample.prompts is empty: give at least one, --config.sample.prompts='a red circle'")
    requests = [Request(prompt, index) for index, prompt in enumerate(settings.prompts)]
    sampler = Sampler(run)
    begin(folder, sampler, requests)
    for request, pieces in sampler.sample(requests):
        write(folder, request, pieces, settings.num_frames, settings.fps)
    sync.wait(run.mesh.world)
    if run.mesh.world.rank == 0:
        print(f"sample: {len(requests)} samples in {folder}", flush=True)
    return {"samples": len(requests)}
