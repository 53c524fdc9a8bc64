//! Which HTTP a connection speaks. Both of its ends speak the same one, so that nothing is lost between them: the
//! server is offered what the client offers, and the client is told what the server took.

/// HTTP/1.1, as it is called in a handshake (RFC 7301 section 6).
pub(super) const H1: &[u8] = b"http/1.1";
/// HTTP/2 (RFC 9113 section 3.2).
pub(super) const H2: &[u8] = b"h2";

/// What is spoken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protocol {
    /// HTTP/1.1.
    H1,
    /// HTTP/2.
    H2,
}

/// What a client offers of that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Offer {
    /// To speak either.
    Both,
    /// HTTP/1.1 only.
    H1,
    /// HTTP/2 only.
    H2,
    /// Nothing is said, which means HTTP/1.1.
    None,
}

impl Offer {
    /// That of a client hello; `None` if it names protocols of which none is HTTP.
    pub(super) fn of<'a>(alpn: Option<impl Iterator<Item = &'a [u8]>>) -> Option<Self> {
        let Some(alpn) = alpn else { return Some(Self::None) };
        let (mut h1, mut h2) = (false, false);
        for protocol in alpn {
            h1 |= protocol == H1;
            h2 |= protocol == H2;
        }
        match (h1, h2) {
            (true, true) => Some(Self::Both),
            (true, false) => Some(Self::H1),
            (false, true) => Some(Self::H2),
            (false, false) => None,
        }
    }

    /// That which keeps to a protocol.
    pub(super) fn only(protocol: Protocol) -> Self {
        match protocol {
            Protocol::H1 => Self::H1,
            Protocol::H2 => Self::H2,
        }
    }

    /// What is spoken where no server has a say.
    pub(super) fn first(self) -> Protocol {
        match self {
            Self::Both | Self::H2 => Protocol::H2,
            Self::H1 | Self::None => Protocol::H1,
        }
    }

    /// What the client is told.
    pub(super) fn answer(self, protocol: Protocol) -> Vec<Vec<u8>> {
        match (self, protocol) {
            (Self::None, _) => Vec::new(),
            (_, Protocol::H1) => vec![H1.to_vec()],
            (_, Protocol::H2) => vec![H2.to_vec()],
        }
    }
}

impl Protocol {
    /// What a server took; one that says nothing speaks HTTP/1.1.
    pub(super) fn agreed(alpn: Option<&[u8]>) -> Self {
        if alpn == Some(H2) { Self::H2 } else { Self::H1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_offered_what_it_speaks() {
        let of = |alpn: Option<&[&'static [u8]]>| Offer::of(alpn.map(|alpn| alpn.iter().copied()));
        assert_eq!(of(None), Some(Offer::None));
        assert_eq!(of(Some(&[b"h2", b"http/1.1"])), Some(Offer::Both));
        assert_eq!(of(Some(&[b"http/1.1"])), Some(Offer::H1));
        assert_eq!(of(Some(&[b"\x2a\x2a", b"h2"])), Some(Offer::H2));
        let others: [&[&[u8]]; 4] = [&[], &[b"imap"], &[b"http/1.0"], &[b"h2c", b"H2"]];
        for other in others {
            assert_eq!(of(Some(other)), None);
        }
    }
}
