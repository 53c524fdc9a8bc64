//! Much over few connections, whose hello was judged.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::book::{self, Book};
use super::hello::{self, hello};
use super::lane::Lane;
use super::servers::{self, TLS};
use crate::bench::tcp::{self, Transfer};

const PATIENCE: Duration = Duration::from_secs(10);

/// Sends over `count` connections at the same time.
pub fn run(lane: &Lane, count: usize, time: Duration) -> Result<Transfer> {
    let listener = servers::listen(lane.internet(), TLS)?;
    let book = Book::new(book::USUAL, 0);
    let pair = |number| -> Result<(TcpStream, TcpStream)> {
        let mut out = lane.sandbox().tcp_connect(book::at(number, TLS), PATIENCE).result?;
        let greeting = hello(book.name(number));
        out.write_all(&greeting)?;
        let (mut into, _) = listener.accept()?;
        into.set_read_timeout(Some(PATIENCE))?;
        let mut heard = [0; hello::LENGTH];
        into.read_exact(&mut heard).context("the hello does not arrive")?;
        ensure!(heard == greeting.as_slice(), "another hello arrives than was said");
        Ok((out, into))
    };
    let streams = (0..count).map(pair).collect::<Result<_>>()?;
    tcp::transfer(streams, time)
}
