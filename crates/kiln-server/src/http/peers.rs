//! How many connections each address has.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections by address. Cheap to clone.
#[derive(Clone)]
pub(super) struct Peers {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    most: usize,
}

/// A connection, which is counted until it is dropped.
pub(super) struct Guest(Option<(Peers, IpAddr)>);

impl Peers {
    /// None has more than this.
    pub(super) fn new(most: usize) -> Peers {
        Peers { open: Arc::default(), most }
    }

    /// Counts a connection, unless its address has too many. This machine's own are not counted.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Guest> {
        let address = network(address.to_canonical());
        if address.is_loopback() {
            return Some(Guest(None));
        }
        let mut open = self.open();
        let n = open.entry(address).or_default();
        (*n < self.most).then(|| {
            *n += 1;
            Guest(Some((self.clone(), address)))
        })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let Some((peers, address)) = &self.0 else { return };
        let mut open = peers.open();
        match open.get_mut(address) {
            Some(n) if *n > 1 => *n -= 1,
            _ => drop(open.remove(address)),
        }
    }
}

/// What one client has: an address of IPv4, and of IPv6 a network of 2^64.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(own) if !own.is_loopback() => Ipv6Addr::from(u128::from(own) >> 64 << 64).into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_its_share() {
        let peers = Peers::new(2);
        let enter = |address: &str| peers.enter(address.parse().expect("an address"));
        let (first, second) = (enter("192.0.2.1"), enter("::ffff:192.0.2.1"));
        assert!(first.is_some() && second.is_some() && enter("192.0.2.1").is_none());
        assert!(enter("192.0.2.2").is_some());
        drop(first);
        assert!(enter("192.0.2.1").is_some());
        let network = [enter("2001:db8::1"), enter("2001:db8::2")];
        assert!(enter("2001:db8::3").is_none() && enter("2001:db8:0:1::3").is_some());
        drop((second, network));
        let own: Vec<_> = (0..9).map(|_| enter("127.0.0.1")).chain((0..9).map(|_| enter("::1"))).collect();
        assert!(own.iter().all(Option::is_some));
        drop(own);
        assert!(peers.open().is_empty());
    }
}
