//! The internet's DNS: a server that knows the names of a test, and remembers what it was asked.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};

use crate::netns::Netns;

/// A DNS server at 8.8.8.8, over UDP.
#[derive(Debug)]
pub struct Zone {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    names: Mutex<HashMap<String, Vec<IpAddr>>>,
    asked: Mutex<Vec<String>>,
}

impl Zone {
    /// Serves these names; any other does not exist.
    pub fn serve(netns: &Netns, names: &[(&str, &[&str])]) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let stop = Arc::new(AtomicBool::new(false));
        let socket = netns.run(|| UdpSocket::bind("8.8.8.8:53").context("cannot serve DNS"))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (state, told) = (Arc::clone(&shared), Arc::clone(&stop));
        let thread = netns.spawn(move || answer(&socket, &state, &told))?;
        let zone = Self { shared, stop, thread: Some(thread) };
        for (name, addresses) in names {
            zone.set(name, addresses)?;
        }
        Ok(zone)
    }

    /// Has a name lead to these addresses from now on.
    pub fn set(&self, name: &str, addresses: &[&str]) -> Result<()> {
        let addresses =
            addresses.iter().map(|text| text.parse().context("an address")).collect::<Result<_>>()?;
        lock(&self.shared.names).insert(name.to_owned(), addresses);
        Ok(())
    }

    /// The names that were asked for so far, in lower case, each as often as it was.
    pub fn asked(&self) -> Vec<String> {
        lock(&self.shared.asked).clone()
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("warning: the DNS server had failed: {error:#}");
        }
    }
}

fn answer(socket: &UdpSocket, shared: &Shared, stop: &AtomicBool) -> Result<()> {
    const TTL: u32 = 60;
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let Some(bytes) = buffer.get(..length) else { continue };
        let Ok(query) = Message::from_vec(bytes) else { continue };
        let reply = reply(&query, shared, TTL);
        send(socket, &reply.to_vec()?, from);
    }
    Ok(())
}

fn reply(query: &Message, shared: &Shared, ttl: u32) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_queries(query.queries.iter().cloned());
    let Some(question) = query.queries.first() else { return reply };
    let name = question.name().to_ascii().to_ascii_lowercase();
    let name = name.trim_end_matches('.');
    lock(&shared.asked).push(name.to_owned());
    match lock(&shared.names).get(name) {
        Some(addresses) => {
            for address in addresses {
                let data = match (address, question.query_type()) {
                    (IpAddr::V4(address), RecordType::A) => RData::A((*address).into()),
                    (IpAddr::V6(address), RecordType::AAAA) => RData::AAAA((*address).into()),
                    _ => continue,
                };
                reply.add_answer(Record::from_rdata(question.name().clone(), ttl, data));
            }
        }
        None => reply.metadata.response_code = ResponseCode::NXDomain,
    }
    reply
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(socket: &UdpSocket, bytes: &[u8], to: SocketAddr) {
    // Whoever asked may be gone.
    let _ = socket.send_to(bytes, to);
}
