"""Make what a rehearsal of the paper profile runs on: `python -m timings.rehearsal FOLDER`

    python -m timings.rehearsal data/rehearsal                        # both families
    python -m timings.rehearsal data/rehearsal --family llava-cot-11b --records 12

Writes `source/` (LLaVA-CoT's layout), `benchmarks/`, and `<family>/{text-cot,base,interpreter}`,
the model folders that the profiles `rehearsal` and `rehearsal-llava-next` name. Of a folder that is
there already nothing is written anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from timings.rehearsal import make

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=make.FAMILIES, action="append", help="default: both")
    parser.add_argument("--records", type=int, default=make.RECORDS)
    given = parser.parse_args()
    made = make.write(given.folder, given.family or make.FAMILIES, records=given.records)
    print(f"{given.folder}: {', '.join(made) or 'nothing'} made")
