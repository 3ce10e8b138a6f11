"""What is in a wheel and what it brings along, as CycloneDX beside it: `python -m build && python man/sbom.py dist`.

The core's packages are required, those of the extras optional; versions are those that are installed here. The same
wheel and the same packages make the same bytes.
"""

import hashlib
import os
import sys
from datetime import UTC, datetime
from importlib.metadata import Distribution
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from dependencies import CORE, NAME, UNNAMED, closure, licence, requirements
from packageurl import PackageURL
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[1]
EPOCH = "1580601600"  # as in the wheel, unless SOURCE_DATE_EPOCH says another time
OF_SOURCES = {"recipe", "test"}  # extras that only the source tree needs


def sbom(wheel: Path) -> str:
    """The text of the bill of materials of `wheel`. Raises ModuleNotFoundError where a package is not installed."""
    groups = requirements(ROOT)
    core = closure(groups[CORE])
    every = closure(row for name, rows in groups.items() if name not in OF_SOURCES for row in rows)
    if every.missing:
        raise ModuleNotFoundError(f"not installed: {', '.join(sorted(every.missing))}: pip install '.[test]'")
    _, version, _, _ = parse_wheel_filename(wheel.name)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    made = Bom(serial_number=uuid5(NAMESPACE_URL, f"{NAME}/{digest}"))
    made.metadata.timestamp = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", EPOCH)), UTC)
    made.metadata.component = Component(
        type=ComponentType.APPLICATION,
        name=NAME,
        version=str(version),
        bom_ref=NAME,
        purl=PackageURL("pypi", name=NAME, version=str(version)),
        licenses=[LicenseFactory().make_from_string("Apache-2.0")],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
    )
    components = {name: _component(package, name in core.found) for name, package in every.found.items()}
    made.components.update(components.values())
    for name, component in components.items():
        made.register_dependency(component, [components[need] for need in sorted(every.needs[name] & set(components))])
    direct = {canonicalize_name(row.name) for rows in groups.values() for row in rows} & set(components)
    made.register_dependency(made.metadata.component, [components[name] for name in sorted(direct)])
    return JsonV1Dot6(made).output_as_string(indent=2) + "\n"


def _component(package: Distribution, required: bool) -> Component:
    terms = licence(package)
    name, version = canonicalize_name(package.metadata["Name"]), package.version
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=version,
        bom_ref=name,
        purl=PackageURL("pypi", name=name, version=version),
        scope=ComponentScope.REQUIRED if required else ComponentScope.OPTIONAL,
        licenses=[] if terms == UNNAMED else [LicenseFactory().make_from_string(terms)],
    )


def main(arguments: list[str]) -> int:
    (folder,) = map(Path, arguments)
    for wheel in folder.glob(f"{NAME}-*.whl"):
        _, version, _, _ = parse_wheel_filename(wheel.name)
        path = folder / f"{NAME}-{version}.cdx.json"
        path.write_text(sbom(wheel))
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
