"""The build backend's part that pyproject.toml cannot say: the native library. See csrc/build_native.py."""

import os
import shutil
import sys

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.errors import CompileError

# Not there by itself in an isolated build.
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "csrc"))
import build_native as native


class BuildNative(Command):
    """Builds the library into the package: where it is built, or for an editable install where it lies."""

    description = "build the native library"
    user_options = []  # noqa: RUF012
    editable_mode = False

    def initialize_options(self):
        self.build_lib = None
        self.built = False

    def finalize_options(self):
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self):
        if self.editable_mode:
            folder = native.PACKAGE / "_native"
        else:
            folder = native.Path(self.build_lib, "s4_fast", "_native")
            shutil.rmtree(folder, ignore_errors=True)
            # With its sources, an installed package can build what the machine of its install could not.
            shutil.copytree(native.CSRC, folder / "csrc", ignore=shutil.ignore_patterns("__pycache__"))
        try:
            self.built = native.build(folder)
        except (native.BuildError, OSError) as error:
            native.show(error)
            raise CompileError(str(error)) from None

    def get_source_files(self):
        return []

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}


class PlatformWheel(bdist_wheel):
    """A wheel with the library is for one platform and every Python; without it, for any platform."""

    def run(self):
        self.run_command("build_native")
        if self.get_finalized_command("build_native").built:
            self.distribution.has_ext_modules = lambda: True
            self.root_is_pure = False
        super().run()

    def get_tag(self):
        if self.root_is_pure:
            return super().get_tag()
        return "py3", "none", super().get_tag()[2]


build.sub_commands.append(("build_native", None))
setup(cmdclass={"build_native": BuildNative, "bdist_wheel": PlatformWheel})
