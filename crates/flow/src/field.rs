//! The six fields of a flow.

/// Longest `src_app`, `dest_app` or `vpc_id`, in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 1024;

/// The six fields of a flow, named as the API names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    SrcApp,
    DestApp,
    VpcId,
    BytesTx,
    BytesRx,
    Hour,
}

impl Field {
    /// In the order of responses.
    pub const ALL: [Field; 6] = [
        Field::SrcApp,
        Field::DestApp,
        Field::VpcId,
        Field::BytesTx,
        Field::BytesRx,
        Field::Hour,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Field::SrcApp => "src_app",
            Field::DestApp => "dest_app",
            Field::VpcId => "vpc_id",
            Field::BytesTx => "bytes_tx",
            Field::BytesRx => "bytes_rx",
            Field::Hour => "hour",
        }
    }

    /// Whether its value is a name; otherwise, it is a number.
    pub const fn is_name(self) -> bool {
        matches!(self, Field::SrcApp | Field::DestApp | Field::VpcId)
    }

    /// The field called `name`, exactly as spelled.
    pub fn from_name(name: &[u8]) -> Option<Field> {
        Field::ALL.into_iter().find(|f| f.name().as_bytes() == name)
    }
}
