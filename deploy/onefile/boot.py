"""The first module in the one file: imports all others from behind the launcher.

Modules are code objects, read from the file by their offsets. Extension modules, and libraries that
only they need, cannot be loaded by an offset: each is copied into a file in memory when it is first
imported. Nothing is written to a disk.

The file is also a Python interpreter for its own modules: ``FILE -I -S FILE/path/of/module.py``
runs one of them, so `sys.executable` works as elsewhere.
"""

import marshal
import os
import sys

# importlib.machinery has both, but lies behind the launcher itself.
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import ExtensionFileLoader

_ASIDE = ("_MAYFLY_PYTHON", "_MAYFLY_LD_")
"""Prefixes of the variables that the launcher renamed."""

_MFD_EXEC = 0x10
"""From linux/memfd.h; Linux 6.3."""

Place = tuple[int, int]
"""Offset in the file, and size, in bytes."""


class OneFile:
    """The finder and loader of the modules in the file; see `importlib.abc`.

    Args:
        descriptor: of the file, open.
        path: of the file.
        index: as `build.make_index` makes it.
    """

    def __init__(self, descriptor: int, path: str, index: dict) -> None:
        self._descriptor = descriptor
        self._path = path
        self._code: dict[str, tuple[int, int, str, bool]] = index["code"]
        self._extensions: dict[str, Place] = index["extensions"]
        self._needed: dict[str, tuple[str, ...]] = index["needed"]
        self._libraries: dict[str, Place] = index["libraries"]
        self._data: dict[str, Place] = index["data"]
        self._loaded = 0

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return the specification of a module; None if it is not in the file."""
        if name in self._extensions:
            path = f"{self._path}/{name.replace('.', '/')}.so"
            spec = ModuleSpec(name, _Extension(self, name, path), origin=path)
        elif name in self._code:
            _, _, file, is_package = self._code[name]
            origin = f"{self._path}/{file}"
            spec = ModuleSpec(name, self, origin=origin, is_package=is_package)
            if spec.submodule_search_locations is not None:
                spec.submodule_search_locations.append(origin.rpartition("/")[0])
        else:
            return None
        spec.has_location = True
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave the making of a module to the import system."""

    def exec_module(self, module: object) -> None:
        """Execute a module."""
        exec(self.get_code(module.__name__), module.__dict__)

    def get_code(self, name: str) -> object:
        """Return the code of a module."""
        offset, size, _, _ = self._code[name]
        return marshal.loads(os.pread(self._descriptor, size, offset))

    def get_source(self, name: str) -> None:
        """Return None: tracebacks have numbers of lines, but no text."""

    def is_package(self, name: str) -> bool:
        """Return whether a module is a package."""
        return self._code[name][3]

    def get_data(self, path: str) -> bytes:
        """Return the bytes of a file in a package.

        Raises:
            FileNotFoundError: there is none.
        """
        found = self._data.get(path.removeprefix(f"{self._path}/"))
        if found is None:
            raise FileNotFoundError(path)
        return os.pread(self._descriptor, found[1], found[0])

    def module_at(self, path: str) -> str | None:
        """Return the name of the module with this ``__file__``; None if there is none."""
        found = (
            name for name, (_, _, file, _) in self._code.items() if f"{self._path}/{file}" == path
        )
        return next(found, None)

    def load_extension(self, name: str, load) -> object:
        """Load an extension module, after the libraries that it needs and that are not loaded yet.

        Args:
            name: of the module.
            load: called with the path of a copy; returns the module.
        """
        for soname in self._needed.get(name, ()):
            place = self._libraries.pop(soname, None)
            if place is not None:
                import _ctypes

                self._load(place, lambda path: _ctypes.dlopen(path, os.RTLD_LAZY))
        return self._load(self._extensions[name], load)

    def _load(self, place: Place, load) -> object:
        """Load a part of the file by a copy of it in memory; the loaded part stays mapped."""
        offset, end = place[0], sum(place)
        try:
            memory = os.memfd_create("mayfly", os.MFD_CLOEXEC | _MFD_EXEC)
        except OSError:
            memory = os.memfd_create("mayfly", os.MFD_CLOEXEC)
        try:
            while offset < end:
                offset += os.sendfile(memory, self._descriptor, offset, end - offset)
            # ld.so takes a path that it has loaded before for the same library, and the number of
            # the descriptor will be used again: so each path is another one.
            self._loaded += 1
            return load(f"/proc/self/{'./' * self._loaded}fd/{memory}")
        finally:
            os.close(memory)


class _Extension(ExtensionFileLoader):
    """The loader of an extension module in the file."""

    def __init__(self, one_file: OneFile, name: str, path: str) -> None:
        super().__init__(name, path)
        self._one_file = one_file

    def create_module(self, spec: ModuleSpec) -> object:
        """Load the module, which is not executed yet."""
        create = super().create_module

        def load(path: str) -> object:
            shown, spec.origin = spec.origin, path
            try:
                return create(spec)
            finally:
                spec.origin = shown

        return self._one_file.load_extension(self.name, load)


def _start() -> OneFile:
    """Make the modules importable, and the process like one that was started without a launcher."""
    numbers, offset, size, path = os.environ.pop("_MAYFLY_ONE_FILE").split(" ", 3)
    inherited = [int(number) for number in numbers.split(",")]
    os.set_inheritable(inherited[0], False)
    for number in inherited[1:]:
        os.close(number)  # ld.so has loaded their contents
    for name in ("PYTHONHOME", "PYTHONPATH"):
        del os.environ[name]
    for name in [name for name in os.environ if name.startswith(_ASIDE)]:
        os.environ[name.removeprefix("_MAYFLY_")] = os.environ.pop(name)
    with open("/proc/self/comm", "w") as comm:  # noqa: PTH123 - pathlib takes milliseconds
        comm.write("mayfly")
    index = marshal.loads(os.pread(inherited[0], int(size), int(offset)))
    one_file = OneFile(inherited[0], path, index)
    # After the finders of built-in and frozen modules; the last one searches sys.path.
    sys.meta_path[-1] = one_file
    sys.path.clear()
    sys.path_importer_cache.clear()
    sys.executable = path
    sys.argv[0] = sys.orig_argv[0]
    return one_file


def _run(modules: OneFile) -> None:
    """Run Mayfly, or the module that the arguments name."""
    words = sys.argv
    name = modules.module_at(words[3]) if words[1:3] == ["-I", "-S"] and words[3:] else None
    if name is not None:
        sys.argv = words[3:]
        exec(modules.get_code(name), sys.modules["__main__"].__dict__)
        return
    from mayfly.__main__ import main
    from mayfly.registry import one_file

    one_file.start_as(sys.executable)
    main()


_run(_start())
