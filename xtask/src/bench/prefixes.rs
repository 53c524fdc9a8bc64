//! Random disjoint prefixes, the same ones in every run, and addresses inside them.

use std::net::Ipv4Addr;

/// Where they come from: public addresses that no guard list holds. Nothing is sent there but in namespaces.
const FIRST: u64 = 16 << 24;
const END: u64 = 96 << 24;

/// The servers of every topology.
const SERVERS: &str = "203.0.113.0/24";

/// What may be reached: the servers, and random prefixes.
#[derive(Debug)]
pub struct Prefixes(Vec<(Ipv4Addr, u8)>);

impl Prefixes {
    /// `count` prefixes with the servers' among them. Of the others 30 % are single addresses, 50 % are /24,
    /// 12 % /22 and 8 % /20.
    pub fn random(count: usize) -> Self {
        Self::with_seed(count, 1)
    }

    /// Others for each seed.
    pub fn with_seed(count: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        let lengths: Vec<u8> = (1..count)
            .map(|_| match random.below(100) {
                0..30 => 32,
                30..80 => 24,
                80..92 => 22,
                _ => 20,
            })
            .collect();
        // Aligning a prefix costs up to its size: so much room is kept, and the rest is for gaps.
        let taken: u64 = lengths.iter().map(|length| 2 << (32 - length)).sum();
        let gap = (END - FIRST).saturating_sub(taken) / count.max(1) as u64;
        let mut at = FIRST;
        let prefixes = lengths.into_iter().map(|length| {
            let size = 1_u64 << (32 - length);
            at = (at + random.below(gap + 1)).next_multiple_of(size);
            let prefix = (Ipv4Addr::from_bits(at as u32), length);
            at += size;
            prefix
        });
        Self(prefixes.collect())
    }

    /// All of them as text.
    pub fn texts(&self) -> Vec<String> {
        let random = self.0.iter().map(|(address, length)| format!("{address}/{length}"));
        [SERVERS.to_owned()].into_iter().chain(random).collect()
    }

    /// `count` random addresses inside the random prefixes.
    pub fn addresses(&self, count: usize) -> Vec<Ipv4Addr> {
        let mut random = Random(2);
        let inside = |_| {
            let (address, length) = *self.0.get(random.below(self.0.len() as u64) as usize)?;
            Some(Ipv4Addr::from_bits(address.to_bits() + random.below(1 << (32 - length)) as u32))
        };
        (0..count).filter_map(inside).collect()
    }
}

/// SplitMix64: enough to look random, and the same everywhere.
pub struct Random(pub u64);

impl Random {
    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_disjoint_and_in_range() {
        for count in [10, 1_000, 1_000_000] {
            let prefixes = Prefixes::random(count);
            assert_eq!(prefixes.texts().len(), count);
            assert_eq!(prefixes.addresses(5).len(), 5);
            let ranges = prefixes.0.iter().map(|(address, length)| {
                let first = u64::from(address.to_bits());
                (first, first + (1 << (32 - length)))
            });
            let mut end = FIRST;
            for (first, after) in ranges {
                assert!(first >= end, "overlap at {first:x}");
                end = after;
            }
            assert!(end <= END, "{count} prefixes end at {end:x}");
        }
    }
}
