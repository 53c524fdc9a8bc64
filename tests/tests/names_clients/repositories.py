"""Writes small repositories below a directory, as their registries would have them: `repositories.py DIR URL`.

`simple` is an index for pip and uv, `npm` a registry with a package that needs 300 others, `apt` a repository.
"""

import base64
import gzip
import hashlib
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import zipfile

root, url = pathlib.Path(sys.argv[1]), sys.argv[2]


def write(path, content):
    path = root / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def wheel(name, needs=()):
    """A package with one module, as PEP 427 has it."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": f"WHO = {name!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        for path, content in files.items():
            out.writestr(path, content)
    file = f"{name}-1.0-py3-none-any.whl"
    digest = hashlib.sha256(archive.getvalue()).hexdigest()
    write(f"files/{file}", archive.getvalue())
    write(f"simple/{name}/index.html", f'<!DOCTYPE html><a href="{url}/files/{file}#sha256={digest}">{file}</a>')


def node(name, needs=()):
    """A package with one module, and the document about it."""
    about = {"name": name, "version": "1.0.0", "main": "index.js", "dependencies": {need: "1.0.0" for need in needs}}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as out:
        for path, content in {"package.json": json.dumps(about), "index.js": f"module.exports = {name!r};\n"}.items():
            member = tarfile.TarInfo(f"package/{path}")
            member.size = len(content)
            out.addfile(member, io.BytesIO(content.encode()))
    digest = base64.b64encode(hashlib.sha512(archive.getvalue()).digest()).decode()
    about["dist"] = {"tarball": f"{url}/npm/{name}/-/{name}-1.0.0.tgz", "integrity": f"sha512-{digest}"}
    write(f"npm/{name}/-/{name}-1.0.0.tgz", archive.getvalue())
    write(f"npm/{name}.json", json.dumps({"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": about}}))


def debian(count):
    """Packages, and the index of them."""
    index = ""
    for number in range(count):
        name = f"sandbox-test-{number}"
        control = f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@allowed.test>\n"
        if number + 1 < count:
            control += f"Depends: sandbox-test-{number + 1}\n"
        control += "Description: a package of a test\n"
        write(f"build/{name}/DEBIAN/control", control)
        path = root / f"apt/pool/{name}_1.0_all.deb"
        path.parent.mkdir(parents=True, exist_ok=True)
        build = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", root / "build" / name, path]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        content = path.read_bytes()
        index += control + f"Filename: apt/pool/{path.name}\nSize: {len(content)}\n"
        index += f"SHA256: {hashlib.sha256(content).hexdigest()}\n\n"
    write("apt/Packages.gz", gzip.compress(index.encode()))
    write("apt/Packages", index)


wheel("sandboxtest", ["sandboxtestone", "sandboxtesttwo"])
wheel("sandboxtestone")
wheel("sandboxtesttwo", ["sandboxtestone"])
NAMES = [f"sandbox-test-{number}" for number in range(300)]
node("sandbox-test", NAMES)
for name in NAMES:
    node(name)
debian(12)
