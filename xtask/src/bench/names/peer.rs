//! A proxy of another maker, and what leads connections to it.

use anyhow::{Context as _, Result};
use filter_tests::Netns;

use super::book::Book;
use crate::bench::nft::Nft;

/// Where it listens for TLS.
pub const TLS: u16 = 8443;
/// Where it listens for HTTP.
pub const HTTP: u16 = 8080;

/// A running proxy.
pub trait Peer {
    /// Writes down what is to be replaced next, as far as that can be done beforehand.
    fn prepare(&self, book: &Book) -> Result<()>;

    /// Puts the names that were prepared in the place of the others. Returns when whoever asked for it would
    /// go on to something else.
    fn replace(&self, book: &Book) -> Result<()>;

    /// Its processes.
    fn processes(&self) -> Result<Vec<u32>>;
}

/// Leads what sandboxes send to ports 443 and 80 to the proxy, and nothing anywhere else.
pub fn redirect(host: &Netns) -> Result<()> {
    let rules = format!(
        "table inet bench {{
             chain prerouting {{
                 type nat hook prerouting priority dstnat; policy accept;
                 iifname \"sbx*\" tcp dport 443 redirect to :{TLS}
                 iifname \"sbx*\" tcp dport 80 redirect to :{HTTP}
             }}
             chain forward {{
                 type filter hook forward priority filter; policy drop;
                 ct state established,related accept
             }}
         }}\n"
    );
    Nft::new(host.clone(), "").run(&rules)?.context("nft takes too long")?;
    Ok(())
}
