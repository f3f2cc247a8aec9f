//! Memory for secrets that stay for a while: locked into RAM, left out of core dumps and of forked
//! processes, wiped when a secret leaves. The one file of this crate that holds `unsafe`.
//!
//! A vault is one mapping that is cut into blocks; a secret takes as many neighbouring ones as it
//! needs. It does not grow: what does not fit is the caller's to keep elsewhere, or not at all.
#![expect(unsafe_code, reason = "no safe interface maps, locks and reads memory of our own")]

use std::ffi::c_void;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use zeroize::Zeroize;

/// Room for any symmetric key, and for the largest of HMAC.
const BLOCK: usize = 64;

#[derive(Debug)]
pub struct Vault {
    memory: NonNull<u8>,
    blocks: Mutex<Blocks>,
}

/// Which blocks are taken.
#[derive(Debug)]
struct Blocks {
    taken: Vec<bool>,
    /// Where the next search begins.
    next: usize,
}

/// Bytes in a vault. They are wiped, and their blocks given back, when this is dropped.
#[derive(Debug)]
pub(crate) struct Kept {
    vault: Arc<Vault>,
    first: usize,
    length: usize,
}

// SAFETY: the mapping lives as long as the vault, and a block is reached only through the one `Kept`
// that took it, which writes it while it is made and while it is dropped, and else only reads it.
unsafe impl Send for Vault {}
// SAFETY: as above; the list of the blocks is under a lock.
unsafe impl Sync for Vault {}

impl Vault {
    /// Maps and locks memory for so many secrets of up to 64 bytes, at least one.
    ///
    /// # Errors
    /// When there is none, or the process may not lock so much (`RLIMIT_MEMLOCK`).
    pub fn new(secrets: usize) -> io::Result<Arc<Self>> {
        let blocks = secrets.max(1);
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
        let mapped = unsafe { mmap_anonymous(ptr::null_mut(), blocks * BLOCK, protection, flags) }?;
        let memory = NonNull::new(mapped.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let blocks = Blocks { taken: vec![false; blocks], next: 0 };
        // From here on dropping it unmaps.
        let vault = Self { memory, blocks: Mutex::new(blocks) };
        vault.protect()?;
        Ok(Arc::new(vault))
    }

    fn protect(&self) -> io::Result<()> {
        let (start, length) = self.mapping();
        // SAFETY: this is the mapping that was made above, and none of these changes what is in it
        // for this process.
        unsafe {
            mlock(start, length)?;
            madvise(start, length, Advice::LinuxDontDump)?;
            madvise(start, length, Advice::LinuxWipeOnFork)?;
        }
        Ok(())
    }

    /// Copies bytes in; `None` when there is no room for them.
    pub(crate) fn keep(self: &Arc<Self>, bytes: &[u8]) -> Option<Kept> {
        let first = self.blocks().take(bytes.len().div_ceil(BLOCK).max(1))?;
        let kept = Kept { vault: Arc::clone(self), first, length: bytes.len() };
        // SAFETY: `take` gave these blocks to this caller alone, they are as long as the bytes, and
        // the bytes can not be in them.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), kept.start(), bytes.len()) };
        Some(kept)
    }

    fn mapping(&self) -> (*mut c_void, usize) {
        (self.memory.as_ptr().cast(), self.blocks().taken.len() * BLOCK)
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        // Each change under this lock is one call.
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        let (start, length) = self.mapping();
        // SAFETY: whoever keeps something here holds the vault, so nobody does any more. Unmapping
        // unlocks. There is nothing to be done when it fails.
        let _ = unsafe { munmap(start, length) };
    }
}

impl Blocks {
    /// So many neighbours that are free, from where the last search ended on.
    fn take(&mut self, count: usize) -> Option<usize> {
        let free = |first: &usize| {
            self.taken.get(*first..first + count).is_some_and(|blocks| !blocks.contains(&true))
        };
        let first = (self.next..self.taken.len()).chain(0..self.next).find(free)?;
        self.taken[first..first + count].fill(true);
        self.next = first + count;
        Some(first)
    }
}

impl Kept {
    fn start(&self) -> *mut u8 {
        // SAFETY: `take` gave blocks of the mapping.
        unsafe { self.vault.memory.as_ptr().add(self.first * BLOCK) }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: these bytes were written when this was made, and nobody writes to them until it is
        // dropped.
        unsafe { std::slice::from_raw_parts(self.start(), self.length) }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // SAFETY: nobody else reaches these bytes, see above, and whoever borrowed them is done.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.length) }.zeroize();
        let count = self.length.div_ceil(BLOCK).max(1);
        self.vault.blocks().taken[self.first..self.first + count].fill(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_is_wiped_and_its_room_is_used_again() {
        let vault = Vault::new(4).unwrap();
        let one = vault.keep(&[1; 32]).unwrap();
        let two = vault.keep(&[2; 100]).unwrap();
        assert_eq!((one.bytes(), two.bytes()), (&[1; 32][..], &[2; 100][..]));
        assert!(vault.keep(&[3; 65]).is_none(), "one block is left");
        let three = vault.keep(&[3; 64]).unwrap();
        assert!(vault.keep(&[]).is_none(), "even nothing takes a block");
        let start = two.start();
        drop(two);
        // SAFETY: the mapping is still there, and nobody keeps anything in these blocks.
        assert_eq!(unsafe { std::slice::from_raw_parts(start, 100) }, [0; 100]);
        let four = vault.keep(&[4; 128]).unwrap();
        assert_eq!(
            (one.bytes(), three.bytes(), four.bytes()[127]),
            (&[1; 32][..], &[3; 64][..], 4)
        );
    }

    #[test]
    fn it_is_locked_and_not_dumped() {
        let vault = Vault::new(1 << 14).unwrap();
        let kept = vault.keep(b"a secret").unwrap();
        let address = kept.start().expose_provenance();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let holds = |line: &str| {
            let (range, _) = line.split_once(' ')?;
            let (from, to) = range.split_once('-')?;
            let number = |text| usize::from_str_radix(text, 16).ok();
            Some((number(from)?..number(to)?).contains(&address))
        };
        let mut lines = maps.lines().skip_while(|line| holds(line) != Some(true));
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags: ")).unwrap();
        for flag in ["lo", "dd", "wf"] {
            assert!(flags.split(' ').any(|found| found == flag), "{flag} in {flags}");
        }
    }
}
