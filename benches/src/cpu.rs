//! Processor time that processes have spent, from the kernel's accounts.

use std::fs;

/// Seconds that these processes have spent in all, in user and kernel mode.
///
/// # Panics
/// When one of them has ended: what it did is no longer known.
pub fn seconds(processes: &[u32]) -> f64 {
    let ticks: u32 = processes.iter().map(|process| ticks(*process)).sum();
    let a_second = u32::try_from(rustix::param::clock_ticks_per_second()).expect("it is 100");
    f64::from(ticks) / f64::from(a_second)
}

fn ticks(process: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))
        .unwrap_or_else(|error| panic!("process {process} has ended: {error}"));
    parse(&stat).expect("proc(5) describes the line")
}

/// The name may hold spaces and brackets, so what is counted follows the last bracket.
fn parse(stat: &str) -> Option<u32> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_name_with_brackets_moves_nothing() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 30 12 0 0 20 0 1 0 100 0";
        assert_eq!(super::parse(stat), Some(42));
        assert!(super::seconds(&[std::process::id()]) >= 0.0);
    }
}
