//! Which addresses of the subnet are taken.

use std::{collections::HashSet, net::Ipv4Addr};

use ipnet::Ipv4Net;

/// The addresses of a subnet: the first is the gateway's, the last nobody's, the others are sandboxes'.
pub(super) struct Addresses {
    subnet: Ipv4Net,
    taken: HashSet<u32>,
    /// Where the search for the next begins: what was given back last comes last.
    next: u32,
}

impl Addresses {
    pub(super) fn new(subnet: Ipv4Net) -> Self {
        Self { subnet: subnet.trunc(), taken: HashSet::new(), next: 0 }
    }

    pub(super) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.network().to_bits() + 1)
    }

    /// An address that nobody has.
    pub(super) fn take(&mut self) -> Option<Ipv4Addr> {
        let (first, count) = self.range();
        let next = self.next;
        let free = (next..count).chain(0..next).find(|offset| !self.taken.contains(&(first + offset)))?;
        self.next = (free + 1) % count;
        self.taken.insert(first + free);
        Some(Ipv4Addr::from_bits(first + free))
    }

    /// Marks an address of an earlier run.
    pub(super) fn adopt(&mut self, address: Ipv4Addr) {
        self.taken.insert(address.to_bits());
    }

    pub(super) fn give_back(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address.to_bits());
    }

    /// The first address for sandboxes, and how many there are.
    fn range(&self) -> (u32, u32) {
        let first = self.gateway().to_bits() + 1;
        (first, self.subnet.broadcast().to_bits() - first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_used_once_and_the_last_given_back_comes_last() {
        let mut addresses = Addresses::new("10.200.0.0/29".parse().unwrap());
        assert_eq!(addresses.gateway(), Ipv4Addr::new(10, 200, 0, 1));
        let all: Vec<_> = std::iter::from_fn(|| addresses.take()).collect();
        assert_eq!(all.first(), Some(&Ipv4Addr::new(10, 200, 0, 2)));
        assert_eq!(all.last(), Some(&Ipv4Addr::new(10, 200, 0, 6)));
        assert_eq!(all.len(), 5);
        addresses.give_back(all[1]);
        assert_eq!(addresses.take(), Some(all[1]));
        addresses.give_back(all[0]);
        addresses.give_back(all[3]);
        assert_eq!(addresses.take(), Some(all[3]));
        addresses.give_back(all[3]);
        assert_eq!(addresses.take(), Some(all[0]));
        addresses.give_back(all[0]);
        addresses.adopt(all[3]);
        assert_eq!(addresses.take(), Some(all[0]));
        assert_eq!(addresses.take(), None);
    }
}
