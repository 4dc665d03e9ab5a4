"""Everything about the package is in pyproject.toml, except that configs and patches lie outside its folder."""

from __future__ import annotations

from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build


class build_configs(Command):
    """Put the checkout's `configs/` and `patches/` into the wheel, as folders of `tllm_plugin/`.

    Follows setuptools' protocol for sub-commands of `build` (`setuptools.command.build.SubCommand`). An editable
    install copies nothing: there the package finds `configs/` beside itself.
    """

    description = "copy configs/ and patches/ into the package"
    user_options: list[tuple[str, str | None, str]] = []

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        if self.editable_mode:
            return
        for target, source in self.get_output_mapping().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def get_source_files(self) -> list[str]:
        """Return what an sdist must hold for the wheel to be built from it."""
        configs = [path for kind in ("*.yaml", "*.sh") for path in Path("configs").rglob(kind)]
        found = [*configs, *Path("patches").rglob("*.patch")]
        return sorted(path.as_posix() for path in found)

    def get_outputs(self) -> list[str]:
        return list(self.get_output_mapping())

    def get_output_mapping(self) -> dict[str, str]:
        """Return built file -> source file; a strict editable install links by it."""
        assert self.build_lib is not None
        return {str(Path(self.build_lib, "tllm_plugin", source)): source for source in self.get_source_files()}


build.sub_commands = [*build.sub_commands, ("build_configs", None)]

setup(cmdclass={"build_configs": build_configs})
