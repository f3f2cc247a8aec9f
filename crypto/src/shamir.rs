//! Shamir's secret sharing over GF(2^8) (Shamir 1979), byte by byte, with the polynomial of AES
//! (FIPS 197, 4). Fewer than `threshold` shares say nothing about the secret.
//!
//! Nothing here tells a right secret from a wrong one, or a whole share from a damaged one: that is
//! for the format around the shares.

use crate::{CryptoError, SecretBytes};

/// One point of the polynomials: its x, which is not secret, and one y for each byte of the secret.
#[derive(Debug)]
pub(crate) struct Point {
    pub(crate) x: u8,
    pub(crate) y: SecretBytes,
}

/// `count` points, any `threshold` of which bring the secret back. 1 <= `threshold` <= `count`.
pub(crate) fn split(
    secret: &SecretBytes,
    threshold: u8,
    count: u8,
) -> Result<Vec<Point>, CryptoError> {
    if threshold == 0 || threshold > count {
        return Err(CryptoError::Malformed("a threshold of more than there are shares"));
    }
    // The coefficients of x^1, x^2, ...: one row of the length of the secret each.
    let rows =
        (1..threshold).map(|_| SecretBytes::random(secret.len())).collect::<Result<Vec<_>, _>>()?;
    Ok((1..=count).map(|x| Point { x, y: evaluate(secret, &rows, x) }).collect())
}

/// Horner's rule from the highest coefficient down to the secret.
fn evaluate(secret: &SecretBytes, rows: &[SecretBytes], x: u8) -> SecretBytes {
    fold(secret.len(), |sums| {
        for row in rows.iter().rev().chain([secret]) {
            row.expose(|row| {
                for (sum, coefficient) in sums.iter_mut().zip(row) {
                    *sum = multiply(*sum, x) ^ coefficient;
                }
            });
        }
    })
}

/// Lagrange's interpolation at 0. The xs must be distinct and not 0, the ys of one length.
pub(crate) fn combine(points: &[&Point]) -> SecretBytes {
    let length = points.first().map_or(0, |point| point.y.len());
    fold(length, |sums| {
        for point in points {
            // The product of x' / (x' - x) over the other points; minus is plus here.
            let weight =
                points.iter().filter(|other| other.x != point.x).fold(1, |weight, other| {
                    multiply(weight, multiply(other.x, invert(other.x ^ point.x)))
                });
            point.y.expose(|y| {
                for (sum, y) in sums.iter_mut().zip(y) {
                    *sum ^= multiply(*y, weight);
                }
            });
        }
    })
}

fn fold(length: usize, work: impl FnOnce(&mut [u8])) -> SecretBytes {
    let filled = SecretBytes::fill(length, |bytes| {
        work(bytes);
        Ok::<(), std::convert::Infallible>(())
    });
    match filled {
        Ok(bytes) => bytes,
        Err(never) => match never {},
    }
}

/// Without tables and branches: how long it takes says nothing about the factors.
fn multiply(a: u8, b: u8) -> u8 {
    let (mut a, mut b, mut product) = (a, b, 0);
    for _ in 0..8 {
        product ^= a & 0_u8.wrapping_sub(b & 1);
        a = (a << 1) ^ (0x1b & 0_u8.wrapping_sub(a >> 7));
        b >>= 1;
    }
    product
}

/// a^254, which is 1/a.
fn invert(a: u8) -> u8 {
    let mut power = a;
    for _ in 0..6 {
        power = multiply(multiply(power, power), a);
    }
    multiply(power, power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(bytes: &[u8]) -> SecretBytes {
        SecretBytes::from_zeroizing(bytes.to_vec().into())
    }

    fn first(count: usize, points: &[Point]) -> Vec<&Point> {
        points.iter().take(count).collect()
    }

    fn point(x: u8, y: &[u8]) -> Point {
        Point { x, y: secret(y) }
    }

    #[test]
    fn the_field_is_that_of_aes() {
        // FIPS 197, 4.2 and 4.2.1.
        assert_eq!(multiply(0x57, 0x83), 0xc1);
        assert_eq!(multiply(0x57, 0x13), 0xfe);
        for a in 1..=255 {
            assert_eq!(multiply(a, invert(a)), 1, "{a}");
        }
    }

    /// Computed by hand with the products of the table above: f(x) = 0x2a + 0x57 x + 0x83 x^2.
    #[test]
    fn a_known_polynomial_is_found_again() {
        let rows = [secret(&[0x57]), secret(&[0x83])];
        let at = |x| evaluate(&secret(&[0x2a]), &rows, x).expose(|bytes| bytes[0]);
        let expected = |x: u8| 0x2a ^ multiply(0x57, x) ^ multiply(0x83, multiply(x, x));
        assert_eq!(at(1), 0x2a ^ 0x57 ^ 0x83);
        for x in 1..=255 {
            assert_eq!(at(x), expected(x));
        }
        for xs in [[1, 2, 3], [7, 200, 255], [3, 2, 1]] {
            let points = xs.map(|x| point(x, &[expected(x)]));
            assert!(combine(&points.each_ref()).ct_eq(&secret(&[0x2a])), "{xs:?}");
        }
    }

    /// Made by another implementation (a table of logarithms to the base 3, in Python).
    #[test]
    fn points_of_another_implementation_combine() {
        let points = [point(1, &VECTOR[0]), point(2, &VECTOR[1]), point(5, &VECTOR[2])];
        assert!(combine(&points.each_ref()).ct_eq(&secret(b"strongroom!")));
    }

    #[test]
    fn any_threshold_of_points_is_enough_and_one_less_is_not() {
        let whole = SecretBytes::random(32).unwrap();
        for (threshold, count) in [(1, 1), (1, 3), (2, 3), (3, 5), (5, 5), (2, 255)] {
            let mut points = split(&whole, threshold, count).unwrap();
            let threshold = usize::from(threshold);
            for _ in 0..count.min(5) {
                points.rotate_left(1);
                assert!(combine(&first(threshold, &points)).ct_eq(&whole));
                let fewer = combine(&first(threshold - 1, &points));
                assert!(!fewer.ct_eq(&whole), "{threshold} of {count}");
            }
        }
        assert!(split(&whole, 0, 3).is_err());
        assert!(split(&whole, 4, 3).is_err());
    }

    const VECTOR: [[u8; 11]; 3] = [
        [0x08, 0xef, 0x9b, 0x0c, 0x65, 0x8e, 0xd7, 0x4d, 0x70, 0x61, 0xc6],
        [0x77, 0x9b, 0x71, 0xa8, 0x9c, 0x4e, 0x67, 0xa9, 0x66, 0x37, 0x78],
        [0xe5, 0x0f, 0x98, 0x9d, 0x27, 0x71, 0xf6, 0xe4, 0xbe, 0xc6, 0x72],
    ];
}
