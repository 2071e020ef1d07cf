//! Whether several hosts may have a disk's files.

use std::path::Path;

use rustix::fs::statfs;

/// File systems that one kernel has mounted at a time, by the numbers of linux/magic.h and of their own sources: ext2 to
/// ext4, XFS, btrfs, ZFS, bcachefs, F2FS, JFS, ReiserFS, NILFS2, tmpfs, ramfs, overlay.
const OF_ONE_HOST: [u64; 12] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0x2fc1_2fc1,
    0xca45_1a4e,
    0xf2f5_2010,
    0x3153_464a,
    0x5265_4973,
    0x3434,
    0x0102_1994,
    0x8584_58f6,
    0x794c_7630,
];

/// Whether other hosts may have mounted the file system of that directory too. One that is not known, as all in user
/// space, may be one of those.
pub fn may_be_shared(directory: &Path) -> bool {
    match statfs(directory) {
        Ok(found) => !is_of_one_host(found.f_type as u64),
        Err(_) => true,
    }
}

fn is_of_one_host(kind: u64) -> bool {
    OF_ONE_HOST.contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_of_one_host_and_what_is_not_known_may_be_shared() {
        assert!(!may_be_shared(Path::new("/dev/shm")));
        assert!(may_be_shared(Path::new("/nowhere/at/all")));
        // NFS, CephFS, GFS2, OCFS2, FUSE, SMB, 9p.
        for kind in [
            0x6969,
            0x00c3_6400,
            0x0116_1970,
            0x7461_636f,
            0x6573_5546,
            0xfe53_4d42,
            0x0102_1997,
        ] {
            assert!(!is_of_one_host(kind), "{kind:#x}");
        }
    }
}
