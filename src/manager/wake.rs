//! Wakes a thread that waits in `poll` for its socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One descriptor on Linux (an eventfd), a pipe elsewhere. Waking twice is waking once.
#[derive(Debug)]
pub struct Wake {
    readable: OwnedFd,
    #[cfg(not(target_os = "linux"))]
    writable: OwnedFd,
}

impl Wake {
    /// # Errors
    /// When the process has no descriptor left.
    #[cfg(target_os = "linux")]
    pub fn new() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        Ok(Self {
            readable: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// # Errors
    /// When the process has no descriptor left.
    #[cfg(not(target_os = "linux"))]
    pub fn new() -> io::Result<Self> {
        let (readable, writable) = std::io::pipe()?;
        rustix::io::ioctl_fionbio(&readable, true)?;
        rustix::io::ioctl_fionbio(&writable, true)?;
        Ok(Self {
            readable: readable.into(),
            writable: writable.into(),
        })
    }

    /// Makes the descriptor readable until [`Self::clear`].
    pub fn wake(&self) {
        #[cfg(target_os = "linux")]
        let writable = &self.readable;
        #[cfg(not(target_os = "linux"))]
        let writable = &self.writable;
        // It fails only when it is readable already.
        let _ = rustix::io::write(writable, &1u64.to_ne_bytes());
    }

    /// Takes the waking back, to wait for the next.
    pub fn clear(&self) {
        let mut bytes = [0; 64];
        while matches!(rustix::io::read(&self.readable, &mut bytes), Ok(64)) {}
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}
