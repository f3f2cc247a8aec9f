//! The memory of another process, searched for bytes that should or should not be in it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::tools;

/// Read at once.
const WINDOW: usize = 4 << 20;

/// Where something was found.
#[derive(Clone, Debug)]
pub struct Hit {
    /// Which of what was looked for.
    pub wanted: usize,
    pub address: u64,
    /// It is locked into memory, and left out of core dumps.
    pub guarded: bool,
    /// What the kernel calls the mapping; empty for memory of no name.
    pub mapping: String,
}

struct Mapping {
    start: u64,
    end: u64,
    readable: bool,
    guarded: bool,
    name: String,
}

/// Reads all memory of a process, once, and answers every place where one of these stands. The
/// process may run on: what moves meanwhile may be missed.
///
/// # Panics
/// When one has less than two bytes.
pub fn search(process_id: u32, wanted: &[Vec<u8>]) -> io::Result<Vec<Hit>> {
    let longest = wanted.iter().map(Vec::len).max().unwrap_or(0);
    // Which of them begin with two bytes: next to none, at most places.
    let mut beginning = vec![Vec::new(); 1 << 16];
    for (number, wanted) in wanted.iter().enumerate() {
        beginning[pair(wanted)].push(number);
    }
    let memory = File::open(format!("/proc/{process_id}/mem"))?;
    let mut hits = Vec::new();
    let mut window = vec![0; WINDOW + longest];
    for mapping in mappings(process_id)?.iter().filter(|mapping| mapping.readable) {
        let mut start = mapping.start;
        while start < mapping.end {
            let rest = usize::try_from(mapping.end - start).unwrap_or(usize::MAX);
            let window = &mut window[..rest.min(WINDOW + longest)];
            // What was unmapped meanwhile, or belongs to a device, has nothing to tell.
            if memory.read_exact_at(window, start).is_ok() {
                // What begins beyond the window is the next one's to find.
                for (place, two) in window.windows(2).enumerate().take(WINDOW) {
                    let numbers = beginning[pair(two)].iter();
                    let found = numbers.filter(|it| window[place..].starts_with(&wanted[**it]));
                    hits.extend(found.map(|number| Hit {
                        wanted: *number,
                        address: start + place as u64,
                        guarded: mapping.guarded,
                        mapping: mapping.name.clone(),
                    }));
                }
            }
            start += WINDOW as u64;
        }
    }
    Ok(hits)
}

fn pair(bytes: &[u8]) -> usize {
    usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]))
}

/// `/proc/PID/smaps`: a line for each mapping, and then lines about it; `VmFlags` is the last.
fn mappings(process_id: u32) -> io::Result<Vec<Mapping>> {
    let text = fs::read_to_string(format!("/proc/{process_id}/smaps"))?;
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let has = |flag: &str| flags.split_whitespace().any(|found| found == flag);
            if let Some(mapping) = mappings.last_mut() {
                mapping.guarded = has("lo") && has("dd");
            }
        } else if let Some(mapping) = mapping(line) {
            mappings.push(mapping);
        }
    }
    Ok(mappings)
}

fn mapping(line: &str) -> Option<Mapping> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    let readable = words.next()?.starts_with('r');
    let name = words.nth(3).unwrap_or_default().to_owned();
    Some(Mapping { start, end, readable, guarded: false, name })
}

/// A process that will be held at its very end, when all its code has run and its memory is still
/// there.
#[derive(Debug)]
pub struct AtItsEnd {
    tool: Child,
    input: ChildStdin,
}

impl AtItsEnd {
    /// From here on the process can not end unseen.
    pub fn watch(process_id: u32, folder: &Path) -> Self {
        let tool = tools::build(include_str!("tools/at_its_end.c"), "at_its_end", &[], folder);
        let mut command = Command::new(tool);
        command.arg(process_id.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut tool = command.spawn().expect("the tool runs");
        let input = tool.stdin.take().expect("it is piped");
        let mut watching = Self { tool, input };
        watching.hear("watching");
        watching
    }

    /// Blocks until it has come to its end.
    pub fn wait(&mut self) {
        self.hear("ended");
    }

    /// Lets it go.
    pub fn release(mut self) {
        self.input.write_all(b"\n").expect("the tool listens");
        self.tool.wait().expect("the tool ends");
    }

    fn hear(&mut self, word: &str) {
        let output = self.tool.stdout.as_mut().expect("it is piped");
        let mut line = String::new();
        BufReader::with_capacity(1, output).read_line(&mut line).expect("the tool speaks");
        assert_eq!(line.trim(), word, "what the tool said");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found_and_nothing_else() {
        let planted: Vec<u8> = (0..64).map(|byte: u8| byte.wrapping_mul(37) ^ 0x5a).collect();
        // At both sides of the border between two windows of the largest mapping there is.
        let mut field = vec![0_u8; 3 * WINDOW];
        for place in [0, WINDOW - 32, 2 * WINDOW + 7] {
            field[place..place + 64].copy_from_slice(&planted);
        }
        let absent: Vec<u8> = planted.iter().map(|byte| byte ^ 0x80).collect();
        let nearly = [&planted[..63], &[planted[63] ^ 1]].concat();
        let hits = search(std::process::id(), &[absent, planted, nearly]).expect("it reads");
        let start = field.as_ptr().expose_provenance() as u64;
        let within = |hit: &&Hit| (start..start + field.len() as u64).contains(&hit.address);
        assert_eq!(hits.iter().filter(within).filter(|hit| hit.wanted == 1).count(), 3);
        assert_eq!(hits.iter().filter(within).count(), 3);
        assert!(hits.iter().filter(within).all(|hit| !hit.guarded));
    }
}
