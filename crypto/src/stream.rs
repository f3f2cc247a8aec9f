//! Files of any size, encrypted in constant memory.
//!
//! ```text
//! magic "SRSTREAM" | format u8 = 1 | u32 BE length of the wrapped data key | it | salt 16 | chunks
//! ```
//!
//! The chunks are STREAM (Hoang, Reyhanitabar, Rogaway, Vizár 2015) over AES-256-GCM: 64 KiB of
//! plaintext each, under the nonce `0^7 | u32 BE counter | u8 last`. The key of the chunks is
//! HKDF-SHA256 of the data key with the salt, bound to the whole header. A chunk's plaintext is
//! written only after its tag was checked; truncation, reordering and any changed bit are found.
//! What was written before the fault was found is genuine, but is not the whole file: a caller
//! writes to a temporary name and renames at the end.

use std::io::{self, Read, Write};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::{SecretBytes, sha256};

const MAGIC: &[u8; 8] = b"SRSTREAM";
const FORMAT: u8 = 1;
const SALT: usize = 16;
const TAG: usize = 16;
const CHUNK: usize = 64 * 1024;
const WRAPPED_MAX: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("this is not an encrypted file of Strongroom")]
    Foreign,
    #[error("the file has format {0}, this program reads format 1")]
    Format(u8),
    #[error("the file is truncated")]
    Truncated,
    #[error("the file does not open: it was changed, or the key is not its key")]
    Changed,
    #[error("the file is too long: {0}")]
    TooLong(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the operating system gives no randomness: {0}")]
    Random(#[from] getrandom::Error),
}

/// The head of an encrypted file; the wrapped data key in it is for the cluster to open.
#[derive(Debug)]
pub struct StreamHeader {
    bytes: Vec<u8>,
}

impl StreamHeader {
    /// Reads the head and leaves the source at the first chunk.
    pub fn read(source: &mut impl Read) -> Result<Self, StreamError> {
        let mut bytes = vec![0; MAGIC.len() + 1 + 4];
        let got = read_full(source, &mut bytes)?;
        if got < MAGIC.len() || !bytes.starts_with(MAGIC) {
            return Err(StreamError::Foreign);
        }
        if got < bytes.len() {
            return Err(StreamError::Truncated);
        }
        if bytes[MAGIC.len()] != FORMAT {
            return Err(StreamError::Format(bytes[MAGIC.len()]));
        }
        let length = u32::from_be_bytes(bytes[MAGIC.len() + 1..].try_into().expect("four bytes"));
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= WRAPPED_MAX)
            .ok_or(StreamError::TooLong("its wrapped data key"))?;
        let start = bytes.len();
        bytes.resize(start + length + SALT, 0);
        if read_full(source, &mut bytes[start..])? < length + SALT {
            return Err(StreamError::Truncated);
        }
        Ok(Self { bytes })
    }

    /// The data key as the cluster wrapped it.
    pub fn wrapped_key(&self) -> &[u8] {
        &self.bytes[MAGIC.len() + 1 + 4..self.bytes.len() - SALT]
    }

    fn new(wrapped_key: &[u8], salt: &[u8; SALT]) -> Result<Self, StreamError> {
        let length = u32::try_from(wrapped_key.len())
            .ok()
            .filter(|_| wrapped_key.len() <= WRAPPED_MAX)
            .ok_or(StreamError::TooLong("its wrapped data key"))?;
        let mut bytes = MAGIC.to_vec();
        bytes.push(FORMAT);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(wrapped_key);
        bytes.extend_from_slice(salt);
        Ok(Self { bytes })
    }

    fn key(&self, data_key: &SecretBytes) -> LessSafeKey {
        let salt = &self.bytes[self.bytes.len() - SALT..];
        let info = [&b"strongroom.stream.v1\0"[..], &sha256(&self.bytes)].concat();
        let mut key = Zeroizing::new([0; 32]);
        data_key
            .expose(|data_key| Hkdf::<Sha256>::new(Some(salt), data_key))
            .expand(&info, &mut *key)
            .expect("HKDF-SHA256 gives 32 bytes");
        let key = UnboundKey::new(&AES_256_GCM, &*key).expect("the key has 32 bytes");
        LessSafeKey::new(key)
    }
}

/// Encrypts everything the source holds; `progress` is told the bytes of plaintext done so far.
pub fn encrypt(
    data_key: &SecretBytes,
    wrapped_key: &[u8],
    source: &mut impl Read,
    target: &mut impl Write,
    progress: impl FnMut(u64),
) -> Result<u64, StreamError> {
    let mut salt = [0; SALT];
    getrandom::fill(&mut salt)?;
    encrypt_with(data_key, wrapped_key, &salt, source, target, progress)
}

/// Decrypts the chunks that follow a header; `progress` is told the bytes of plaintext written.
pub fn decrypt(
    header: &StreamHeader,
    data_key: &SecretBytes,
    source: &mut impl Read,
    target: &mut impl Write,
    mut progress: impl FnMut(u64),
) -> Result<u64, StreamError> {
    let key = header.key(data_key);
    let mut chunks = Chunks::new(source, CHUNK + TAG)?;
    let mut done = 0;
    while let Some(Chunk { counter, last, bytes }) = chunks.next()? {
        // Only a file of nothing has an empty chunk; another one would be a second form.
        if bytes.len() < TAG || (bytes.len() == TAG && counter > 0) {
            return Err(StreamError::Truncated);
        }
        let plaintext = key
            .open_in_place(nonce(counter, last), Aad::empty(), bytes)
            .map_err(|_| StreamError::Changed)?;
        target.write_all(plaintext)?;
        done += plaintext.len() as u64;
        progress(done);
    }
    target.flush()?;
    Ok(done)
}

fn encrypt_with(
    data_key: &SecretBytes,
    wrapped_key: &[u8],
    salt: &[u8; SALT],
    source: &mut impl Read,
    target: &mut impl Write,
    mut progress: impl FnMut(u64),
) -> Result<u64, StreamError> {
    let header = StreamHeader::new(wrapped_key, salt)?;
    let key = header.key(data_key);
    target.write_all(&header.bytes)?;
    let mut chunks = Chunks::new(source, CHUNK)?;
    let mut done = 0;
    while let Some(Chunk { counter, last, bytes }) = chunks.next()? {
        done += bytes.len() as u64;
        let tag = key
            .seal_in_place_separate_tag(nonce(counter, last), Aad::empty(), bytes)
            .expect("a chunk is far below the limit of AES-GCM");
        target.write_all(bytes)?;
        target.write_all(tag.as_ref())?;
        progress(done);
    }
    target.flush()?;
    Ok(done)
}

fn nonce(counter: u32, last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[7..11].copy_from_slice(&counter.to_be_bytes());
    nonce[11] = u8::from(last);
    Nonce::assume_unique_for_key(nonce)
}

/// Reads a source in chunks and knows which one is the last, by reading one ahead.
struct Chunks<'a, R> {
    source: &'a mut R,
    size: usize,
    current: Zeroizing<Vec<u8>>,
    ahead: Zeroizing<Vec<u8>>,
    ahead_length: Option<usize>,
    counter: u32,
}

struct Chunk<'a> {
    counter: u32,
    last: bool,
    bytes: &'a mut [u8],
}

impl<'a, R: Read> Chunks<'a, R> {
    fn new(source: &'a mut R, size: usize) -> io::Result<Self> {
        let mut ahead = Zeroizing::new(vec![0; size]);
        let length = read_full(source, &mut ahead)?;
        let current = Zeroizing::new(vec![0; size]);
        Ok(Self { source, size, current, ahead, ahead_length: Some(length), counter: 0 })
    }

    fn next(&mut self) -> Result<Option<Chunk<'_>>, StreamError> {
        let Some(length) = self.ahead_length.take() else { return Ok(None) };
        std::mem::swap(&mut self.current, &mut self.ahead);
        if length == self.size {
            let next = read_full(self.source, &mut self.ahead)?;
            self.ahead_length = (next > 0).then_some(next);
        }
        let (counter, last) = (self.counter, self.ahead_length.is_none());
        if !last {
            self.counter =
                counter.checked_add(1).ok_or(StreamError::TooLong("more than 2^32 chunks"))?;
        }
        Ok(Some(Chunk { counter, last, bytes: &mut self.current[..length] }))
    }
}

/// Reads until the buffer is full or the source ends.
fn read_full(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match source.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_key() -> SecretBytes {
        SecretBytes::from_zeroizing(vec![9; 32].into())
    }

    fn encrypted(plaintext: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut seen = 0;
        let done =
            encrypt(&data_key(), b"wrapped", &mut &*plaintext, &mut file, |n| seen = n).unwrap();
        assert_eq!((done, seen), (plaintext.len() as u64, plaintext.len() as u64));
        file
    }

    fn decrypted(mut file: &[u8], key: &SecretBytes) -> Result<Vec<u8>, StreamError> {
        let header = StreamHeader::read(&mut file)?;
        assert!(header.wrapped_key().len() <= WRAPPED_MAX);
        let mut plaintext = Vec::new();
        decrypt(&header, key, &mut file, &mut plaintext, |_| {})?;
        Ok(plaintext)
    }

    #[test]
    fn files_of_every_awkward_size_come_back() {
        for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5] {
            let plaintext: Vec<u8> =
                (0..size).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect();
            assert_eq!(
                decrypted(&encrypted(&plaintext), &data_key()).unwrap(),
                plaintext,
                "{size}"
            );
        }
    }

    #[test]
    fn the_format_does_not_change() {
        let mut file = Vec::new();
        encrypt_with(&data_key(), b"wrapped", &[7; 16], &mut &b"dawn"[..], &mut file, |_| {})
            .unwrap();
        let head = format!("{}01{}{}", hex::encode(MAGIC), "00000007", hex::encode("wrapped"));
        assert_eq!(hex::encode(file), format!("{head}{}{GOLDEN_CHUNK}", "07".repeat(16)));
    }

    const GOLDEN_CHUNK: &str = "e24f955e84451e5f99a95b1a4ca398fda6a377f1";

    #[test]
    fn truncation_is_found_at_every_chunk_boundary_and_between() {
        let file = encrypted(&vec![5; 2 * CHUNK + 100]);
        let head = file.len() - (2 * CHUNK + 100 + 3 * TAG);
        let boundaries = [head, head + CHUNK + TAG, head + 2 * (CHUNK + TAG)];
        for cut in (0..head).chain(boundaries).chain([head + 7, file.len() - 1]) {
            assert!(decrypted(&file[..cut], &data_key()).is_err(), "cut to {cut}");
        }
    }

    #[test]
    fn reordered_repeated_and_appended_chunks_are_found() {
        let plaintext: Vec<u8> = (0..3 * CHUNK).map(|i| u8::try_from(i / CHUNK).unwrap()).collect();
        let file = encrypted(&plaintext);
        let head = file.len() - 3 * (CHUNK + TAG);
        let (head, chunks) = file.split_at(head);
        let chunks: Vec<&[u8]> = chunks.chunks(CHUNK + TAG).collect();
        let orders: [&[usize]; 5] = [&[1, 0, 2], &[0, 0, 2], &[0, 2], &[2], &[0, 1, 2, 2]];
        for order in orders {
            let body: Vec<&[u8]> = order.iter().map(|i| chunks[*i]).collect();
            let bad = [head, &body.concat()].concat();
            assert!(decrypted(&bad, &data_key()).is_err(), "{order:?}");
        }
        assert!(decrypted(&[&file[..], b"x"].concat(), &data_key()).is_err());
    }

    #[test]
    fn every_bit_of_a_small_file_counts_and_a_bad_chunk_is_never_written() {
        let file = encrypted(b"plaintext");
        for bit in 0..file.len() * 8 {
            let mut bad = file.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decrypted(&bad, &data_key()).is_err(), "bit {bit}");
        }
        assert!(decrypted(&file, &SecretBytes::random(32).unwrap()).is_err());

        let mut bad = encrypted(&vec![5; CHUNK + 10]);
        *bad.last_mut().unwrap() ^= 1;
        let mut source = &bad[..];
        let header = StreamHeader::read(&mut source).unwrap();
        let mut written = Vec::new();
        assert!(decrypt(&header, &data_key(), &mut source, &mut written, |_| {}).is_err());
        assert_eq!(written.len(), CHUNK, "the first chunk is genuine, the second is not written");
    }
}
