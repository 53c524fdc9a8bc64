//! What kernel and inspector tell, as events for people and programs: into the file of events, if there is one, and
//! the [`Feed`] that `observe` reads.

mod fold;
mod line;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use filter_common::layout;
use filter_inspector::host;

use self::fold::Folded;
use super::core::Core;
use super::feed::Feed;
use super::journal::Journal;
use super::registry::Sandbox;
use crate::kernel::rings::Ring;
use crate::protocol::SandboxId;
use crate::protocol::event::{Dropped, Event, Told};

/// How often the ring is read.
const INTERVAL: Duration = Duration::from_millis(100);
/// How often it is looked what is missing.
const LOOK: Duration = Duration::from_secs(1);

/// Events of the inspector on their way to the writer. When there are too many they are counted instead.
#[derive(Clone)]
pub struct Inspected {
    sender: SyncSender<(u32, host::Event)>,
    lost: Arc<AtomicU64>,
}

/// The other end of [`Inspected`].
pub struct InspectedEvents {
    receiver: Receiver<(u32, host::Event)>,
    lost: Arc<AtomicU64>,
}

/// A way for the inspector's events.
pub fn inspected() -> (Inspected, InspectedEvents) {
    /// What comes within an interval of the writer.
    const WAITING: usize = 16_384;
    let (sender, receiver) = sync_channel(WAITING);
    let lost = Arc::new(AtomicU64::new(0));
    (Inspected { sender, lost: lost.clone() }, InspectedEvents { receiver, lost })
}

impl Inspected {
    /// Has an event told. Never waits.
    pub fn send(&self, tenant: u32, event: host::Event) {
        if self.sender.try_send((tenant, event)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Writer {
    core: Arc<Core>,
    out: Option<Journal>,
    feed: Feed,
    /// What is to be appended to the feed.
    told: Vec<Told>,
    folded: Folded,
    inspected: InspectedEvents,
    /// What each sandbox's throttle had held back when it was last looked at.
    untold: HashMap<u32, u64>,
    looked: Instant,
}

/// Starts the thread that reads the ring of events, until `stop`. `out`: the file that lines go to, if any.
///
/// # Errors
/// If there can be no more threads.
pub fn start(
    core: Arc<Core>,
    mut ring: Ring<layout::Event>,
    inspected: InspectedEvents,
    out: Option<Journal>,
    stop: Arc<AtomicBool>,
) -> std::io::Result<JoinHandle<()>> {
    // What was held back under an earlier daemon was told by that.
    let mut untold = HashMap::new();
    for sandbox in core.kernel.sandboxes.all().map_err(std::io::Error::other)? {
        let activity = core.kernel.sandboxes.activity(sandbox.slot).map_err(std::io::Error::other)?;
        untold.insert(sandbox.tenant, activity.untold);
    }
    let mut writer = Writer {
        feed: core.feed.clone(),
        core,
        out,
        told: Vec::new(),
        folded: Folded::default(),
        inspected,
        untold,
        looked: Instant::now(),
    };
    std::thread::Builder::new().name("events".into()).spawn(move || {
        loop {
            let last = stop.load(Ordering::Relaxed);
            writer.drain(&mut ring, last);
            if last {
                return;
            }
            std::thread::sleep(INTERVAL);
        }
    })
}

impl Writer {
    fn drain(&mut self, ring: &mut Ring<layout::Event>, last: bool) {
        while let Some(event) = ring.pop() {
            self.take(event.tenant, |sandbox| line::of_kernel(&event, sandbox));
        }
        while let Ok((tenant, event)) = self.inspected.receiver.try_recv() {
            self.take(tenant, |sandbox| Some(line::of_inspector(&event, sandbox)));
        }
        for event in self.folded.due(last) {
            self.write(Told::Event(event));
        }
        if last || self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            self.tell_losses();
        }
        self.feed.append(std::mem::take(&mut self.told));
        if let Some(out) = &mut self.out
            && let Err(error) = out.flush()
        {
            tracing::error!(%error, "cannot write events");
        }
    }

    fn take(&mut self, tenant: u32, event: impl FnOnce(&Sandbox) -> Option<Event>) {
        // Its sandbox left long ago.
        let Some(sandbox) = self.core.registry.tenant(tenant) else { return };
        let Some(event) = event(&sandbox) else { return };
        if event.event != line::CLOSE {
            self.core.metrics.flow(&event.proto, &event.decision, &event.reason);
        }
        let event = if event.event == line::DENY { self.folded.take(tenant, event) } else { Some(event) };
        if let Some(event) = event {
            self.write(Told::Event(event));
        }
    }

    fn tell_losses(&mut self) {
        let mut unknown = self.core.kernel.sandboxes.take_events_lost().unwrap_or(0);
        unknown += self.inspected.lost.swap(0, Ordering::Relaxed);
        self.tell_loss(None, unknown);
        let mut present = HashMap::new();
        for sandbox in self.core.registry.all() {
            let Ok(activity) = self.core.kernel.sandboxes.activity(sandbox.slot) else { continue };
            let before = self.untold.get(&sandbox.tenant).copied().unwrap_or(0);
            self.tell_loss(Some(&sandbox.id), activity.untold.saturating_sub(before));
            present.insert(sandbox.tenant, activity.untold);
        }
        self.untold = present;
    }

    fn tell_loss(&mut self, sandbox: Option<&SandboxId>, dropped: u64) {
        if dropped > 0 {
            self.core.metrics.events_dropped.inc_by(dropped);
            self.write(Told::Dropped(Dropped::now(sandbox.cloned(), dropped)));
        }
    }

    fn write(&mut self, told: Told) {
        if let Some(out) = &mut self.out {
            let written = serde_json::to_vec(&told).map_err(std::io::Error::from).and_then(|mut bytes| {
                bytes.push(b'\n');
                out.write(&bytes)
            });
            if let Err(error) = written {
                tracing::error!(%error, "cannot write events");
            }
        }
        self.told.push(told);
    }
}
