"""A directory as a client of a cluster file system sees it, by /dev/fuse and without any library.

Two of these over one directory are two hosts: each has names, attributes and pages of its own in the kernel. It has
what any POSIX cluster file system has, and lacks what one of them lacks: flags of rename, unnamed files, allocation
and holes, copies by the server. Locks of files (flock) are held against every host, those of directories against this
one only, as with NFS and ceph-fuse.

Usage: shared_fs.py BACKING MOUNT_POINT [OPTION...]; it prints a line when it is mounted, and ends when it is
unmounted. Options:

--holes    holes can be made
--believe  a host believes for a minute what it was told of a name or a file, as a client of NFS does for some seconds

SIGUSR1: the storage evicts this host, as CephFS does with a client that does not answer: its locks are given up, and all
that it asks for fails from then on. SIGUSR2: its locks are given up, and nothing else. When that is done there is a file
beside the mount point, MOUNT_POINT.evicted.
"""

import ctypes
import errno
import fcntl
import os
import signal
import stat
import struct
import sys
import threading
import traceback

LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK = 1, 2, 3, 4, 5, 6
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK = 8, 9, 10, 11, 12, 13
OPEN, READ, WRITE, STATFS, RELEASE, FSYNC = 14, 15, 16, 17, 18, 20
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR = 25, 26, 27, 28, 29, 30
SETLK, SETLKW, ACCESS, CREATE, INTERRUPT, DESTROY = 32, 33, 34, 35, 36, 38
BATCH_FORGET, FALLOCATE, RENAME2 = 42, 43, 45
# What an evicted host may do: give up what it has.
LETTING_GO = (INIT, FLUSH, RELEASE, RELEASEDIR, DESTROY)
NO_ANSWER = (FORGET, BATCH_FORGET, INTERRUPT)

ATOMIC_O_TRUNC, BIG_WRITES, FLOCK_LOCKS, MAX_PAGES = 1 << 3, 1 << 5, 1 << 10, 1 << 22
MAX_WRITE = 1 << 18
BUFFER = MAX_WRITE + (1 << 16)
HEADER, ANSWER = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
TIME = 10**9
O_PATH_ONLY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
LIBC = ctypes.CDLL(None, use_errno=True)
# What open(2) is told here again: not who may, nor how a name is followed.
KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_TRUNC


class Node:
    """A file or directory that the kernel knows, held by a descriptor whatever becomes of its names."""

    def __init__(self, fd, number):
        self.fd, self.number, self.lookups = fd, number, 0

    def path(self):
        return f"/proc/self/fd/{self.fd}"


class FileSystem:
    def __init__(self, backing, options):
        self.has_holes = "--holes" in options
        # Else nothing is believed for any time: what another host does is seen at once.
        self.believed = 60 if "--believe" in options else 0
        root = Node(os.open(backing, O_PATH_ONLY & ~os.O_NOFOLLOW), 1)
        found = os.fstat(root.fd)
        self.nodes = {1: root}
        self.by_inode = {(found.st_dev, found.st_ino): root}
        self.next_node, self.next_handle = 2, 1
        self.handles, self.listings = {}, {}
        self.lock = threading.Lock()
        self.is_fenced = False

    def evict(self, is_fenced):
        self.is_fenced = is_fenced
        for handle in list(self.handles.values()):
            try:
                fcntl.flock(handle, fcntl.LOCK_UN)
            except OSError:
                # It was closed meanwhile.
                pass

    # What is known of files

    def attributes(self, node):
        a = os.fstat(node.fd)
        return struct.pack(
            "<6Q10I", a.st_ino, a.st_size, a.st_blocks, a.st_atime_ns // TIME, a.st_mtime_ns // TIME,
            a.st_ctime_ns // TIME, a.st_atime_ns % TIME, a.st_mtime_ns % TIME, a.st_ctime_ns % TIME,
            a.st_mode, a.st_nlink, a.st_uid, a.st_gid, a.st_rdev, 4096, 0)

    def entry(self, parent, name):
        return self.entry_of(os.open(name, O_PATH_ONLY, dir_fd=parent.fd))

    def entry_of(self, fd):
        found = os.fstat(fd)
        with self.lock:
            node = self.by_inode.get((found.st_dev, found.st_ino))
            if node is None:
                node = Node(fd, self.next_node)
                self.next_node += 1
                self.nodes[node.number] = node
                self.by_inode[(found.st_dev, found.st_ino)] = node
            else:
                os.close(fd)
            node.lookups += 1
        return struct.pack("<4Q2I", node.number, 0, self.believed, self.believed, 0, 0) + self.attributes(node)

    def found(self, node):
        return struct.pack("<QII", self.believed, 0, 0) + self.attributes(node)

    def forget(self, number, lookups):
        with self.lock:
            node = self.nodes.get(number)
            if node is None or number == 1:
                return
            node.lookups -= lookups
            if node.lookups <= 0:
                found = os.fstat(node.fd)
                self.by_inode.pop((found.st_dev, found.st_ino), None)
                del self.nodes[number]
                os.close(node.fd)

    def opened(self, fd):
        with self.lock:
            handle = self.next_handle
            self.next_handle += 1
            self.handles[handle] = fd
        return struct.pack("<QII", handle, 0, 0)

    # Requests

    def answer(self, op, node, body, uid, gid):
        if self.is_fenced and op not in LETTING_GO:
            raise OSError(errno.ESHUTDOWN, "evicted")
        if op == INIT:
            major, minor, readahead = struct.unpack_from("<3I", body)
            flags = ATOMIC_O_TRUNC | BIG_WRITES | FLOCK_LOCKS | MAX_PAGES
            return struct.pack("<4I2H2I2HI7I", 7, 31, readahead, flags, 16, 12, MAX_WRITE, 1, MAX_WRITE // 4096, 0,
                               0, *[0] * 7)
        if op == LOOKUP:
            return self.entry(node, body[:-1])
        if op == GETATTR:
            return self.found(node)
        if op == SETATTR:
            return self.set_attributes(node, body)
        if op == READLINK:
            return os.readlink(b"", dir_fd=node.fd)
        if op == SYMLINK:
            name, target = body.split(b"\0")[:2]
            os.symlink(target, name, dir_fd=node.fd)
            return self.entry(node, name)
        if op == MKNOD:
            mode, rdev, umask, _ = struct.unpack_from("<4I", body)
            return self.made(node, body[16:-1], uid, gid, lambda name: os.mknod(name, mode & ~umask, rdev,
                                                                               dir_fd=node.fd))
        if op == MKDIR:
            mode, umask = struct.unpack_from("<2I", body)
            return self.made(node, body[8:-1], uid, gid, lambda name: os.mkdir(name, mode & ~umask, dir_fd=node.fd))
        if op == UNLINK:
            return os.unlink(body[:-1], dir_fd=node.fd)
        if op == RMDIR:
            return os.rmdir(body[:-1], dir_fd=node.fd)
        if op in (RENAME, RENAME2):
            (target,) = struct.unpack_from("<Q", body)
            flags = struct.unpack_from("<I", body, 8)[0] if op == RENAME2 else 0
            if flags:
                raise OSError(errno.EINVAL, "no flags")
            old, new = body[16 if op == RENAME2 else 8:].split(b"\0")[:2]
            return os.rename(old, new, src_dir_fd=node.fd, dst_dir_fd=self.nodes[target].fd)
        if op == LINK:
            (source,) = struct.unpack_from("<Q", body)
            name = body[8:-1]
            os.link(self.nodes[source].path(), name, dst_dir_fd=node.fd, follow_symlinks=True)
            return self.entry(node, name)
        if op in (OPEN, OPENDIR):
            (flags,) = struct.unpack_from("<I", body)
            flags = os.O_RDONLY | os.O_DIRECTORY if op == OPENDIR else flags & KEPT_FLAGS
            return self.opened(os.open(node.path(), flags | os.O_CLOEXEC))
        if op == CREATE:
            flags, mode, umask, _ = struct.unpack_from("<4I", body)
            name = body[16:-1]
            fd = os.open(name, flags & KEPT_FLAGS | os.O_CREAT | flags & os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                         mode & ~umask, dir_fd=node.fd)
            if uid:
                os.fchown(fd, uid, gid)
            # Not by the name, which another host may have given to another file by now.
            return self.entry_of(os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)) + self.opened(fd)
        if op == READ:
            handle, offset, size = struct.unpack_from("<QQI", body)
            return os.pread(self.handles[handle], size, offset)
        if op == WRITE:
            handle, offset, size = struct.unpack_from("<QQI", body)
            return struct.pack("<II", os.pwrite(self.handles[handle], body[40:40 + size], offset), 0)
        if op == STATFS:
            a = os.fstatvfs(node.fd)
            return struct.pack("<5Q10I", a.f_blocks, a.f_bfree, a.f_bavail, a.f_files, a.f_ffree, a.f_bsize,
                               a.f_namemax, a.f_frsize, *[0] * 7)
        if op in (RELEASE, RELEASEDIR):
            (handle,) = struct.unpack_from("<Q", body)
            self.listings.pop(handle, None)
            return os.close(self.handles.pop(handle))
        if op in (FSYNC, FSYNCDIR):
            handle, flags = struct.unpack_from("<QI", body)
            return os.fdatasync(self.handles[handle]) if flags & 1 else os.fsync(self.handles[handle])
        if op in (FLUSH, ACCESS, DESTROY):
            return b""
        if op == READDIR:
            return self.list_directory(body)
        if op in (SETLK, SETLKW):
            return self.flock(body, op == SETLKW)
        if op == FALLOCATE and self.has_holes:
            handle, offset, length, mode = struct.unpack_from("<QQQI", body)
            if LIBC.fallocate(self.handles[handle], mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
                raise OSError(ctypes.get_errno(), "fallocate")
            return b""
        # As the kernel puts it to whoever asked: it is not supported, or done in another way.
        raise OSError(errno.ENOSYS, "lacking")

    def made(self, parent, name, uid, gid, make):
        make(name)
        if uid:
            os.chown(name, uid, gid, dir_fd=parent.fd, follow_symlinks=False)
        return self.entry(parent, name)

    def set_attributes(self, node, body):
        (valid, _, handle, size, _, atime, mtime, _, atimensec, mtimensec, _, mode, _, uid, gid,
         _) = struct.unpack_from("<II6Q8I", body)
        if valid & 1:
            os.chmod(node.path(), mode & 0o7777)
        if valid & 6:
            os.chown(node.path(), uid if valid & 2 else -1, gid if valid & 4 else -1)
        if valid & 8:
            os.truncate(self.handles[handle] if valid & 64 else node.path(), size)
        if valid & 48:
            now = os.fstat(node.fd)
            times = [now.st_atime_ns, now.st_mtime_ns]
            if valid & 16:
                times[0] = None if valid & 128 else atime * TIME + atimensec
            if valid & 32:
                times[1] = None if valid & 256 else mtime * TIME + mtimensec
            if None in times:
                os.utime(node.path())
            else:
                os.utime(node.path(), ns=tuple(times))
        return self.found(node)

    def list_directory(self, body):
        handle, offset, size = struct.unpack_from("<QQI", body)
        if offset == 0 or handle not in self.listings:
            with os.scandir(self.handles[handle]) as entries:
                self.listings[handle] = [(os.fsencode(e.name), e.inode(), stat.S_IFMT(
                    e.stat(follow_symlinks=False).st_mode) >> 12) for e in entries]
        answer = b""
        for number, (name, inode, kind) in enumerate(self.listings[handle][offset:], offset + 1):
            one = struct.pack("<QQII", inode, number, len(name), kind) + name
            one += b"\0" * (-len(one) % 8)
            if len(answer) + len(one) > size:
                break
            answer += one
        return answer

    def flock(self, body, waits):
        (handle, _, _, _, kind, _, flags) = struct.unpack_from("<4Q3I", body)
        if not flags & 1:
            raise OSError(errno.ENOSYS, "locks of ranges")
        operation = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX, fcntl.F_UNLCK: fcntl.LOCK_UN}[kind]
        fcntl.flock(self.handles[handle], operation | (0 if waits else fcntl.LOCK_NB))


def respond(device, files, unique, op, number, body, uid, gid):
    error, data = 0, b""
    try:
        data = files.answer(op, files.nodes.get(number), body, uid, gid) or b""
    except OSError as failed:
        error, data = -(failed.errno or errno.EIO), b""
    except KeyError:
        error, data = -errno.ESTALE, b""
    except Exception:
        # Whoever asked would wait for ever.
        traceback.print_exc()
        error, data = -errno.EIO, b""
    try:
        os.write(device, ANSWER.pack(ANSWER.size + len(data), error, unique) + data)
    except OSError as failed:
        # Whoever asked was killed meanwhile.
        if failed.errno != errno.ENOENT:
            raise


def serve(device, files):
    while True:
        try:
            request = os.read(device, BUFFER)
        except OSError as failed:
            if failed.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                continue
            # Unmounted.
            return
        _, op, unique, number, uid, gid, _, _, _ = HEADER.unpack_from(request)
        body = request[HEADER.size:]
        if op == FORGET:
            files.forget(number, struct.unpack_from("<Q", body)[0])
        elif op == BATCH_FORGET:
            (count,) = struct.unpack_from("<I", body)
            for one in range(count):
                files.forget(*struct.unpack_from("<QQ", body, 8 + 16 * one))
        elif op == INTERRUPT:
            continue
        elif op == SETLKW:
            threading.Thread(target=respond, args=(device, files, unique, op, number, body, uid, gid),
                             daemon=True).start()
        else:
            respond(device, files, unique, op, number, body, uid, gid)


def main():
    backing, mount_point = sys.argv[1:3]
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    if LIBC.mount(b"sealdisk-test", os.fsencode(mount_point), b"fuse.shared", 0, options.encode()):
        sys.exit(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    os.umask(0)
    files = FileSystem(backing, sys.argv[3:])

    def evict(number, _):
        files.evict(number == signal.SIGUSR1)
        open(mount_point + ".evicted", "w").close()

    signal.signal(signal.SIGUSR1, evict)
    signal.signal(signal.SIGUSR2, evict)
    # The first request comes before anybody can use it.
    print("mounted", flush=True)
    serve(device, files)


main()
