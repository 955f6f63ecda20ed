"""Have the judge grade the reconstructions, own state and controls: `python -m stages.judge`

Reads  reconstructions/{name}/{training seed}.jsonl for every entry of `reconstructions` in
       params.yaml, and with similarity.judge_image the images of data/source
Writes judgements/{name}/{training seed}.jsonl: a grade from 1 to 5 for each turn and control

Replies are kept in judge.cache, which no stage deletes. Killed or stopped by the budget and started
again, the stage asks only for what is missing.
"""

from __future__ import annotations

from eval.judge import JudgeError
from heima import config
from heima.data import places
from heima.data.images import ImageZip
from heima.results.files import atomic, read_jsonl, write_jsonl
from stages import arguments


def main() -> None:
    params = config.load_resolved()
    from eval.judge.reconstructions import judge

    read_image = None
    if params.similarity.judge_image:
        images = ImageZip(places.locate("data/source") / "images.zip", params.image_decoding)
        read_image = images.read_file
    names = [f"{name}/{seed}" for name in params.reconstructions for seed in params.seeds]
    rows = {name: read_jsonl(f"reconstructions/{name}.jsonl") for name in names}
    try:
        judged = judge(rows, params, read_image=read_image)
    except JudgeError as error:
        raise SystemExit(f"judge: {error}") from error
    with atomic("judgements") as folder:
        folder.mkdir()
        for name, found in judged.items():
            write_jsonl(folder / f"{name}.jsonl", found)


if __name__ == "__main__":
    arguments.read(__doc__)
    main()
