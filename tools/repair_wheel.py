"""Make a wheel fit for other machines: auditwheel puts in the libraries that it needs, and this their licences.

    python tools/repair_wheel.py fastopt-*.whl FOLDER

A library without a licence here is an error. Linux only: the wheels of the other systems carry no library. Needs
auditwheel and patchelf.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# The name of a library up to the first dash or dot: its licence. The texts are in the folder of that name.
LICENSES = {"libgomp": "GPL-3.0-or-later WITH GCC-exception-3.1"}
TEXTS = Path(__file__).resolve().parents[1] / "licenses"


def vendored(names: list[str]) -> list[str]:
    """The libraries among a wheel's files, by the name that `LICENSES` knows them under."""
    return sorted({re.split(r"[-.]", Path(name).name)[0] for name in names if re.match(r"[^/]+\.libs/.", name)})


def with_licenses(metadata: str, libraries: list[str], texts: dict[str, bytes]) -> str:
    """METADATA that speaks for these libraries, too."""
    expression = " AND ".join(["", *(LICENSES[library] for library in libraries)])
    metadata = re.sub(r"^License-Expression: .*", lambda line: line[0] + expression, metadata, count=1, flags=re.M)
    files = "".join(f"License-File: {name}\n" for name in texts)
    return re.sub(r"^License-File: .*\n", lambda line: line[0] + files, metadata, count=1, flags=re.M)


def record_of(files: dict[str, bytes], record: str) -> bytes:
    """RECORD: every file with its digest and size."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        writer.writerow([name, f"sha256={digest}", len(content)])
    writer.writerow([record, "", ""])
    return out.getvalue().encode()


def add_licenses(wheel: Path, out: Path) -> None:
    """Write the wheel anew, with the licences of the libraries in it."""
    with zipfile.ZipFile(wheel) as archive:
        entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
        files = {name: archive.read(name) for name in entries}
    libraries = vendored(list(files))
    if unknown := [library for library in libraries if library not in LICENSES]:
        sys.exit(f"{wheel.name} carries {', '.join(unknown)}, whose licence {Path(__file__).name} does not know")
    record = next(name for name in files if name.endswith(".dist-info/RECORD"))
    info = record.removesuffix("RECORD")
    texts = {f"{library}/{path.name}": path.read_bytes()
             for library in libraries for path in sorted((TEXTS / library).iterdir())}  # fmt: skip
    del files[record]
    files |= {f"{info}licenses/{name}": text for name, text in texts.items()}
    metadata = with_licenses(files[info + "METADATA"].decode(), libraries, texts)
    files[info + "METADATA"] = metadata.encode()
    files[record] = record_of(files, record)
    with zipfile.ZipFile(out / wheel.name, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = entries.get(name) or zipfile.ZipInfo(name, entries[record].date_time)
            entry.external_attr = entry.external_attr or 0o100644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)


def main() -> None:
    """Repair one wheel."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path, help="where to put the repaired wheel")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run(["auditwheel", "repair", "--wheel-dir", temporary, str(args.wheel)], check=True)
        for wheel in Path(temporary).glob("*.whl"):
            add_licenses(wheel, args.folder)
            print(args.folder / wheel.name)


if __name__ == "__main__":
    main()
