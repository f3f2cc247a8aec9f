//! Figures that a process publishes for Prometheus over plain HTTP.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The sum of all series of this name at each of these addresses.
///
/// # Panics
/// When one of them does not answer.
pub fn sum(addresses: &[SocketAddr], name: &str) -> f64 {
    let each = addresses.iter().map(|address| {
        let page = page(*address).unwrap_or_else(|error| panic!("{address}: {error}"));
        read(&page, name)
    });
    each.sum()
}

pub fn page(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

/// The sum of all series of this name; 0 when there is none.
pub fn read(page: &str, name: &str) -> f64 {
    let values = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value =
            rest.strip_prefix(' ').or_else(|| rest.strip_prefix('{')?.split_once("} ")?.1.into());
        value?.trim().parse::<f64>().ok()
    });
    values.sum()
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    #[expect(clippy::float_cmp, reason = "small integers are exact")]
    fn series_of_one_name_are_summed_and_others_are_not() {
        let page = "# TYPE a counter\na 2\na{b=\"c d\"} 3\na_total 5\n";
        assert_eq!(read(page, "a"), 5.0);
        assert_eq!(read(page, "b"), 0.0);
    }
}
