//! Takes the part of a host towards the sandbox.

use std::{sync::Arc, time::Duration};

use filter_common::Reason;
use filter_policy::Name;
use rustls::server::Acceptor;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::LazyConfigAcceptor;

use super::{
    leaf::NoLeaf,
    nursery::Nursery,
    protocol::{Offer, Protocol},
    session::{Front, Session},
};
use crate::{
    connection::{Connection, Refused},
    host::Host,
    stream::Stream,
};

/// Serves a connection whose client asks for `name`, which the policy sets headers for; `said` is its hello.
///
/// # Errors
/// If it is refused before the client was answered. The connection comes back with why.
pub(crate) async fn serve<H: Host>(
    mut connection: Connection<H>,
    name: &Name,
    said: &[u8],
) -> Result<(), (Connection<H>, Refused)> {
    let named = Ok(Some(name.clone()));
    // Before anything is made for it.
    if let Err(refused) = connection.judge(&named) {
        return Err((connection, refused));
    }
    let client = Stream::of_client(&connection, said.to_vec());
    let patience = connection.shared.settings.peek_timeout;
    let Some(hello) = within(patience, LazyConfigAcceptor::new(Acceptor::default(), client)).await else {
        return Err(deny(connection, Reason::NoName));
    };
    // Two have read it by now, and they must agree.
    let is_same =
        hello.client_hello().server_name().and_then(|name| Name::parse(name).ok()).as_ref() == Some(name);
    let offer = is_same.then(|| Offer::of(hello.client_hello().alpn())).flatten();
    let Some(offer) = offer else { return Err(deny(connection, Reason::BadName)) };

    let transformer = Arc::clone(&connection.shared.transformer);
    let leaf = match transformer.leaves.of(connection.tenant(), name) {
        Ok(leaf) => leaf,
        Err(NoLeaf::TooMany) => return Err(deny(connection, Reason::Capacity)),
        Err(NoLeaf::Failed(error)) => {
            tracing::error!(%error, "cannot pass for a host");
            return Err(deny(connection, Reason::Capacity));
        }
    };
    if let Err(refused) = connection.reach(&named).await {
        return Err((connection, refused));
    }
    let (mut nursery, spawner) = Nursery::new();
    let deadline = Instant::now() + connection.shared.settings.dial_timeout;
    let upstream = match &connection.upstream {
        Some(upstream) => {
            let stream = Stream::new(Arc::clone(upstream));
            timeout_at(deadline, transformer.trust.connect(name, offer, stream))
                .await
                .ok()
                .and_then(Result::ok)
        }
        None => None,
    };
    let (protocol, upstream) = match upstream {
        Some(upstream) => (Protocol::agreed(upstream.get_ref().1.alpn_protocol()), Some(upstream)),
        // The first request tries again, and is told what is wrong.
        None => {
            connection.leave_upstream();
            (offer.first(), None)
        }
    };
    let config = transformer.leaves.config(leaf, offer.answer(protocol));
    let Some(client) = within(patience, hello.into_stream(config)).await else {
        // Most likely it does not trust the authority; what it says of it is for its own log.
        tracing::debug!(host = name.as_str(), "a client does not complete the handshake");
        connection.break_off();
        return Ok(());
    };
    connection.discharge();
    let front = Front::Tls { name: name.clone(), protocol };
    let session = Session::new(connection, front, spawner);
    if let Some(upstream) = upstream {
        session.begin_with(&mut nursery, upstream).await;
    }
    session.serve(client, nursery).await;
    Ok(())
}

fn deny<H: Host>(connection: Connection<H>, reason: Reason) -> (Connection<H>, Refused) {
    let refused = connection.refused(reason);
    (connection, refused)
}

async fn within<T, E>(patience: Duration, work: impl IntoFuture<Output = Result<T, E>>) -> Option<T> {
    timeout(patience, work).await.ok()?.ok()
}
