//! ClientHellos by hand: every field can be a lie.

/// A ClientHello to be.
#[derive(Clone, Debug)]
pub struct Hello {
    extensions: Vec<(u16, Vec<u8>)>,
}

/// Extension types (RFC 8446 section 4.2, RFC 9849 section 5, RFC 8701).
pub const SERVER_NAME: u16 = 0;
pub const PADDING: u16 = 21;
pub const ECH: u16 = 0xfe0d;
pub const GREASE: u16 = 0x0a0a;
/// The most that a record holds (RFC 8446 section 5.1).
pub const MAX_RECORD: usize = 1 << 14;

/// A whole hello for `name`, in one record, as a client sends it.
pub fn hello(name: impl AsRef<[u8]>) -> Vec<u8> {
    Hello::of(name).bytes()
}

/// A list with its length in front.
fn vector16(content: &[u8]) -> Vec<u8> {
    [&u16::try_from(content.len()).unwrap().to_be_bytes(), content].concat()
}

/// The content of a `server_name` extension with these names.
pub fn server_names(names: &[&[u8]]) -> Vec<u8> {
    let entries: Vec<u8> = names.iter().flat_map(|name| [vec![0], vector16(name)].concat()).collect();
    vector16(&entries)
}

impl Hello {
    /// One that names nobody.
    pub fn new() -> Self {
        let versions = vec![4, 3, 4, 3, 3];
        let groups = vector16(&[0, 29, 0, 23]);
        let schemes = vector16(&[4, 3, 8, 4, 4, 1]);
        // What a client shows of X25519: any 32 bytes will do.
        let share = vector16(&[&[0, 29][..], &vector16(&[0x42; 32])].concat());
        Self { extensions: vec![(43, versions), (10, groups), (13, schemes), (51, share)] }
    }

    pub fn of(name: impl AsRef<[u8]>) -> Self {
        let mut hello = Self::new();
        hello.extensions.insert(0, (SERVER_NAME, server_names(&[name.as_ref()])));
        hello
    }

    /// Adds an extension behind the others.
    pub fn and(mut self, kind: u16, content: impl AsRef<[u8]>) -> Self {
        self.extensions.push((kind, content.as_ref().to_vec()));
        self
    }

    /// Adds an extension in front of the others.
    pub fn after(mut self, kind: u16, content: impl AsRef<[u8]>) -> Self {
        self.extensions.insert(0, (kind, content.as_ref().to_vec()));
        self
    }

    /// The handshake message (RFC 8446 section 4.1.2).
    pub fn message(&self) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([0x17; 32]);
        // A session id, three suites, no compression.
        body.extend([&[32][..], &[0x18; 32]].concat());
        body.extend(vector16(&[0x13, 1, 0x13, 2, 0xc0, 0x2f]));
        body.extend([1, 0]);
        let extensions = self.extensions.iter();
        let extensions: Vec<u8> =
            extensions.flat_map(|(kind, content)| [&kind.to_be_bytes()[..], &vector16(content)].concat()).collect();
        body.extend(vector16(&extensions));
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1][..], &length[1..], &body].concat()
    }

    /// The message in records of at most so many bytes.
    pub fn records(&self, size: usize) -> Vec<u8> {
        records(&self.message(), size)
    }

    /// The message in as few records as hold it.
    pub fn bytes(&self) -> Vec<u8> {
        self.records(MAX_RECORD)
    }
}

/// Handshake records of at most so many bytes.
pub fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|piece| [&[22, 3, 1][..], &vector16(piece)].concat()).collect()
}
