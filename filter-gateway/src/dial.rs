//! Connecting to a sandbox: to its own addresses, and to nothing else.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{net::TcpStream, time};

use crate::directory::Sandbox;

/// Connects to a port of a sandbox, at whichever of its addresses answers first in order.
///
/// # Errors
/// If none does within `patience`; then that of the last.
pub(crate) async fn dial(sandbox: &Sandbox, port: u16, patience: Duration) -> io::Result<TcpStream> {
    let attempts = async {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for addr in sandbox.addrs.iter().filter(|addr| is_elsewhere(**addr)) {
            match TcpStream::connect(SocketAddr::new(*addr, port)).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    time::timeout(patience, attempts).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Whatever an operator attaches: no sandbox has the host's own loopback.
fn is_elsewhere(addr: IpAddr) -> bool {
    let addr = addr.to_canonical();
    !(addr.is_loopback() || addr.is_unspecified() || addr.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_host_itself_is_never_dialled() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sandbox = Sandbox {
            id: "abc".into(),
            tenant: 1,
            addrs: ["127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0", "::1", "::"]
                .map(|addr| addr.parse().unwrap())
                .to_vec(),
            traffic_token: None,
            controller_token: None,
            mask: None,
        };
        let port = listener.local_addr().unwrap().port();
        let error = dial(&sandbox, port, Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }
}
