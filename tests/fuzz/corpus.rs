//! Awkward inputs and their mutations, from a seed that is always the same unless the environment
//! says otherwise.

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngSeed};

/// How a target is run.
pub fn config(cases: u32) -> Config {
    let mut config = Config::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(0x6275_636b_6574);
    }
    config.failure_persistence = None;
    config
}

/// The inputs of a corpus file: one in each line, with the escapes `\n`, `\\` and `\xHH`; lines
/// that begin with `#!` are comments.
pub fn inputs(file: &str) -> Vec<Vec<u8>> {
    let lines = file.lines().filter(|line| !line.starts_with("#!"));
    lines.map(unescape).collect()
}

fn unescape(line: &str) -> Vec<u8> {
    let mut input = Vec::new();
    let mut rest = line.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'\\', [b'n', tail @ ..]) => {
                input.push(b'\n');
                rest = tail;
            }
            (b'\\', [b'\\', tail @ ..]) => {
                input.push(b'\\');
                rest = tail;
            }
            (b'\\', [b'x', high, low, tail @ ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).unwrap();
                input.push(u8::from_str_radix(digits, 16).unwrap());
                rest = tail;
            }
            _ => input.push(*first),
        }
    }
    input
}

/// An input of the corpus after a few random edits, or none.
pub fn mutated(inputs: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let edit = (0u8..6, any::<Index>(), any::<Index>(), any::<u8>());
    let edits = proptest::collection::vec(edit, 0..5);
    (any::<Index>(), edits).prop_map(move |(first, edits)| {
        let mut input = inputs[first.index(inputs.len())].clone();
        for (kind, from, other, byte) in edits {
            let at = from.index(input.len() + 1);
            let end = at + other.index(input.len() - at + 1);
            match kind {
                0 => input.insert(at, byte),
                1 => drop(input.drain(at..end)),
                2 => {
                    let again = input[at..end].to_vec();
                    input.splice(at..at, again);
                }
                3 => input.truncate(at),
                4 => {
                    let other = &inputs[other.index(inputs.len())];
                    let half = &other[from.index(other.len() + 1)..];
                    input.splice(at.., half.iter().copied());
                }
                _ => {
                    if let Some(one) = input.get_mut(at) {
                        *one ^= 1 << (byte % 8);
                    }
                }
            }
        }
        input
    })
}
