class _Sync(enum.Enum):
    """What to do about the names of the folders on the way to a file."""

    NONE = enum.auto()  # only looking
    MAKE = enum.auto()  # make what is missing, sync what this session has not synced yet
    ALL = enum.auto()  # the user made them, who knows when


    # -- folders --------------------------------------------------------------------

    @contextmanager
    def _folder(self, name: str, sync: _Sync) -> Iterator[tuple[int, str]]:
        """The opened folder that a file is in, and the last part of the file's name."""
        *parts, last = name.split("/")
        fd, at = self._fd, ""
        try:
            for part in parts:
                inner = self._step(fd, at, part, sync)
                outer, fd, at = fd, inner, _below(at, part)
                if outer != self._fd:
                    self.system.close(outer)
            if sync is not _Sync.NONE:
                self._refuse_lost(at)
            yield fd, last
        finally:
            if fd != self._fd:
                self.system.close(fd)

    def _step(self, folder: int, at: str, part: str, sync: _Sync) -> int:
        """Open a folder in the folder `at`; that it is there is then durable, if asked."""
        name = _below(at, part)
        try:
            fd = self.system.open(part, _FOLDER, dir_fd=folder)
        except FileNotFoundError:
            if sync is not _Sync.MAKE:
                raise
            with suppress(FileExistsError):
                self.system.mkdir(part, dir_fd=folder)
            self._sure.discard(name)
            fd = self.system.open(part, _FOLDER, dir_fd=folder)
        try:
            if sync is _Sync.ALL or (sync is _Sync.MAKE and name not in self._sure):
                self._sync(folder, at)
                if len(self._sure) >= MAX_SURE_FOLDERS:
                    self._sure.clear()
                self._sure.add(name)
        except BaseException:
            self.system.close(fd)
            raise
        return fd

    def _sync(self, fd: int, name: str) -> None:
        self._refuse_lost(name)
        try:
            self.system.fsync(fd)
        except OSError:
            self._lost.add(name)
            raise

    def _refuse_lost(self, name: str) -> None:
        if name in self._lost:
            raise OutputError(
                name or self.root,
                "an earlier fsync of it failed, so what is on the disk is not known and a later "
                "one proves nothing; see to the disk, then start the program again",
            )


def _open_root(system: System, root: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY
    above, name = os.path.split(root)
    try:
        fd = system.open(root, flags)
    except FileNotFoundError:
        folder = _open_root(system, above)
        try:
            with suppress(FileExistsError):
                system.mkdir(name, dir_fd=folder)
            system.fsync(folder)
            return system.open(name, flags, dir_fd=folder)
        finally:
            system.close(folder)
    with suppress(OSError):  # it was there before: its name is its maker's, ours at best
        folder = system.open(above, flags)
        try:
            system.fsync(folder)
        finally:
            system.close(folder)
    return fd
