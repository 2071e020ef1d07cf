//! The formats of images, by their names.

use std::fmt;

/// A format of source images, by QEMU's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// The disk's bytes themselves.
    Raw,
    /// QEMU copy on write, version 2 or 3.
    Qcow2,
    /// VHD, fixed or dynamic: QEMU calls it `vpc`.
    Vpc,
    /// Hyper-V's VHDX.
    Vhdx,
    /// VMware's VMDK in one file.
    Vmdk,
    /// VirtualBox's VDI.
    Vdi,
    /// QEMU's QED, which was to replace qcow2.
    Qed,
    /// The image of a Parallels HDD.
    Parallels,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vpc => "vpc",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Qed => "qed",
            Self::Parallels => "parallels",
        })
    }
}
