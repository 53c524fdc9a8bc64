//! Why a packet passed or did not: the one list that counters, events, labels and messages follow.

/// What a reason amounts to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// The packet or flow passes.
    Allow,
    /// It does not.
    Deny,
}

impl Decision {
    /// `allow` or `deny`, as events and metric labels spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal, $decision:ident;)+) => {
        /// Why a packet or a flow was let through or refused.
        ///
        /// The numbers index the counters in shared memory and travel in events: the list only ever
        /// grows at its end.
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl Reason {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The word that users see: counter, event field, metric label.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// Whether it lets the packet pass.
            pub const fn decision(self) -> Decision {
                match self { $(Self::$variant => Decision::$decision,)+ }
            }

            /// One sentence for the reference and for people.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+),)+ }
            }

            /// The reason with this number, as read from shared memory.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

reasons! {
    /// The destination is in an allowed CIDR.
    AllowedCidr = 0, "allowed_cidr", Allow;
    /// The connection's name is allowed.
    AllowedName = 1, "allowed_name", Allow;
    /// A DNS query taken by the forwarder.
    Dns = 2, "dns", Allow;
    /// No rule is about the destination.
    Default = 3, "default", Allow;
    /// It belongs to a connection that is already known.
    Reply = 4, "reply", Allow;
    /// ARP or IPv6 neighbour discovery about the sandbox's own address.
    Neighbour = 5, "neighbour", Allow;
    /// Not a well-formed ARP, IPv4 or IPv6 packet that can be judged in full.
    Malformed = 6, "malformed", Deny;
    /// The source address or MAC is not the sandbox's.
    Spoofed = 7, "spoofed", Deny;
    /// ARP or neighbour discovery for another's address, or the part of a router or DHCP server.
    NeighbourClaim = 8, "neighbour_claim", Deny;
    /// The destination belongs to the platform.
    Guarded = 9, "guarded", Deny;
    /// Neither TCP, UDP, ICMP echo nor an ICMP error of a known connection; or TCP that is of none and opens none.
    Protocol = 10, "protocol", Deny;
    /// A fragment without ports, to a destination that no CIDR rule allows.
    Fragment = 11, "fragment", Deny;
    /// The destination is in a denied CIDR.
    DeniedCidr = 12, "denied_cidr", Deny;
    /// The sandbox has all the connections it may have.
    ConnectionLimit = 13, "connection_limit", Deny;
    /// The host has no room left to track another connection.
    Capacity = 14, "capacity", Deny;
    /// Somebody other than the host tried to start a connection to the sandbox.
    Inbound = 15, "inbound", Deny;
    /// The connection named nobody.
    NoName = 16, "no_name", Deny;
    /// What stood where a name belongs is no name.
    BadName = 17, "bad_name", Deny;
    /// No rule allows the connection's name.
    NameNotAllowed = 18, "name_not_allowed", Deny;
    /// The name is allowed but does not resolve.
    Unresolved = 19, "unresolved", Deny;
    /// No name came before the deadline.
    PeekTimeout = 20, "peek_timeout", Deny;
    /// An HTTP request that can be read in more than one way.
    BadRequest = 21, "bad_request", Deny;
    /// A DNS query that the policy does not let out.
    DnsRefused = 22, "dns_refused", Deny;
    /// The policy that allowed this connection was replaced by one that does not.
    Revoked = 23, "revoked", Deny;
    /// The inspector that would have to judge this is not running.
    InspectorDown = 24, "inspector_down", Deny;
    /// The server that a request with set headers is for is not who it says it is: its certificate is not to be trusted.
    UpstreamTls = 25, "upstream_tls", Deny;
    /// A header that is to be set names a secret that the host does not have, or that is none to send.
    NoSecret = 26, "no_secret", Deny;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_round_trip() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(Reason::from_number(*reason as u8), Some(*reason));
        }
        assert_eq!(Reason::from_number(u8::try_from(Reason::COUNT).unwrap()), None);
    }

    #[test]
    fn names_are_unique_snake_case() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert!(reason.name().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
            assert!(Reason::ALL[..index].iter().all(|other| other.name() != reason.name()));
        }
    }
}
