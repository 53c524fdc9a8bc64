//! As much of BTF as it takes to find a struct by its name.
//! <https://github.com/torvalds/linux/blob/v6.12/Documentation/bpf/btf.rst>

const HEADER: usize = 24;
const KIND_STRUCT: u32 = 4;

struct Struct {
    name: String,
    size: u32,
    fields: Vec<(String, usize)>,
}

/// The structs of an object.
pub struct Btf(Vec<Struct>);

impl Btf {
    pub fn of(object: &aya_obj::Object) -> Self {
        let bytes = object.btf.as_ref().expect("the object has BTF").to_bytes();
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let place = |at: usize| usize::try_from(word(at)).unwrap();
        // `struct btf_header`: four offsets and lengths behind magic, version, flags and its own length.
        let (types, types_len, strings) = (HEADER + place(8), place(12), HEADER + place(16));
        let text = |at: usize| {
            let bytes = &bytes[strings + place(at)..];
            let end = bytes.iter().position(|byte| *byte == 0).unwrap();
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };

        let mut structs = Vec::new();
        let mut at = types;
        while at < types + types_len {
            let (info, size) = (word(at + 4), word(at + 8));
            let (kind, count, bitfields) = (info >> 24 & 0x1f, (info & 0xffff) as usize, info >> 31 == 1);
            let behind = at + 12;
            if kind == KIND_STRUCT {
                let fields = (0..count).map(|index| {
                    let field = behind + 12 * index;
                    let offset = word(field + 8);
                    let bits = if bitfields { offset & 0x00ff_ffff } else { offset };
                    (text(field), usize::try_from(bits / 8).unwrap())
                });
                structs.push(Struct { name: text(at), size, fields: fields.collect() });
            }
            at = behind + extra(kind, count);
        }
        Self(structs)
    }

    /// Size, and each field with its offset. A name that several structs have must be of one layout.
    pub fn layout(&self, name: &str) -> (u32, Vec<(String, usize)>) {
        let mut found = self.0.iter().filter(|found| found.name == name);
        let first = found.next().unwrap_or_else(|| panic!("the programs do not use {name}"));
        for other in found {
            assert_eq!((other.size, &other.fields), (first.size, &first.fields), "two types called {name}");
        }
        (first.size, first.fields.clone())
    }
}

/// Bytes behind a type of this kind.
fn extra(kind: u32, count: usize) -> usize {
    match kind {
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Struct, union, section, enumeration of 64 bits.
        4 | 5 | 15 | 19 => 12 * count,
        // Enumeration, function's parameters.
        6 | 13 => 8 * count,
        // Pointer, forward, typedef, qualifiers, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        other => panic!("a kind of BTF type that is not known here: {other}"),
    }
}
