//! The rows of a Parquet file as lines of text: flows, or records of AWS's flow logs.

use std::io;
use std::path::{Component, Path};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{Field as ArrowField, Fields};
use percent_encoding::percent_decode_str;

use super::columns::{Kind, Values};
use agent::inputs::is_flow_log_field;
use flow::Field;

/// Turns rows into lines.
pub(super) trait RowText: Send {
    /// The indexes of the columns that it needs.
    fn columns(&self) -> Vec<usize>;

    /// Appends a line for each row.
    ///
    /// # Errors
    /// If a value cannot be text: the rest of the file cannot be read.
    fn write(&self, batch: &RecordBatch, out: &mut Vec<u8>) -> io::Result<()>;
}

/// The index of the column called `name`; `None` if there is none.
///
/// # Errors
/// If there are two.
fn find(fields: &Fields, name: &str) -> Result<Option<usize>, String> {
    let named = |(_, field): &(usize, &Arc<ArrowField>)| field.name() == name;
    let mut found = fields.iter().enumerate().filter(named);
    match (found.next(), found.next()) {
        (_, Some(_)) => Err(format!("it has the column {name} twice; rename one")),
        (found, None) => Ok(found.map(|(at, _)| at)),
    }
}

/// Rows with the six fields of a flow, as NDJSON.
pub(super) struct FlowRows {
    sources: [Source; Field::ALL.len()],
}

/// Where the values of a field are.
enum Source {
    /// The column with this index.
    Column(usize),
    /// The path, as JSON: `…/hour=7/flows.parquet`.
    Path(String),
}

impl FlowRows {
    /// A file with one of these columns has flows.
    pub(super) const NAMES: [&str; 4] = ["src_app", "dest_app", "bytes_tx", "bytes_rx"];

    /// # Errors
    /// If a column is missing, or has a type that is not exact.
    pub(super) fn new(fields: &Fields, path: &Path) -> Result<FlowRows, String> {
        let source = |field: Field| -> Result<Source, String> {
            let name = field.name();
            if let Some(at) = find(fields, name)? {
                validate(field, &fields[at])?;
                return Ok(Source::Column(at));
            }
            let json = of_path(path, field).ok_or_else(|| {
                format!(
                    "it is Parquet without the column {name}; flows have src_app, dest_app, vpc_id, bytes_tx, bytes_rx \
                     and hour: add it, as in DuckDB: COPY (SELECT *, 0 AS {name} FROM 'FILE') TO 'flows.parquet'"
                )
            })?;
            Ok(Source::Path(json))
        };
        let [src_app, dest_app, vpc_id, bytes_tx, bytes_rx, hour] = Field::ALL.map(source);
        Ok(FlowRows {
            sources: [src_app?, dest_app?, vpc_id?, bytes_tx?, bytes_rx?, hour?],
        })
    }
}

/// # Errors
/// If values of this type are not those of `field`.
fn validate(field: Field, column: &ArrowField) -> Result<(), String> {
    let (name, data_type) = (field.name(), column.data_type());
    match (field.is_name(), Kind::of(data_type)) {
        (true, Some(Kind::Text)) | (false, Some(Kind::Integers)) => Ok(()),
        (true, _) => Err(format!(
            "column {name} has the type {data_type}; names are text: write it as such, as in DuckDB: CAST({name} AS \
             VARCHAR)"
        )),
        (false, _) => Err(format!(
            "column {name} has the type {data_type}; only integers are exact: write it as one, as in DuckDB: CAST({name} \
             AS UBIGINT)"
        )),
    }
}

/// The value of a field in the path, where Hive and DuckDB keep the columns by which files are partitioned.
fn of_path(path: &Path, field: Field) -> Option<String> {
    let encoded = path.components().rev().find_map(|part| match part {
        Component::Normal(part) => part.to_str()?.strip_prefix(field.name())?.strip_prefix('='),
        _ => None,
    });
    let value = percent_decode_str(encoded?).decode_utf8().ok()?;
    match field.is_name() {
        true => serde_json::to_string(&value).ok(),
        // Leading zeros are not JSON.
        false => Some(value.parse::<u64>().ok()?.to_string()),
    }
}

impl RowText for FlowRows {
    fn columns(&self) -> Vec<usize> {
        let column = |source: &Source| match source {
            Source::Column(at) => Some(*at),
            Source::Path(_) => None,
        };
        self.sources.iter().filter_map(column).collect()
    }

    fn write(&self, batch: &RecordBatch, out: &mut Vec<u8>) -> io::Result<()> {
        let mut fields = Vec::with_capacity(Field::ALL.len());
        for (field, source) in Field::ALL.into_iter().zip(&self.sources) {
            let values = match source {
                Source::Column(_) => FieldValues::Column(Values::of(batch, field.name())?),
                Source::Path(json) => FieldValues::Path(json),
            };
            fields.push((field, values));
        }
        let mut digits = Vec::new();
        for row in 0..batch.num_rows() {
            for (at, (field, values)) in fields.iter().enumerate() {
                out.push(if at == 0 { b'{' } else { b',' });
                out.push(b'"');
                out.extend_from_slice(field.name().as_bytes());
                out.extend_from_slice(b"\":");
                match values {
                    FieldValues::Path(json) => out.extend_from_slice(json.as_bytes()),
                    FieldValues::Column(values) => match values.get(row, &mut digits) {
                        // The decoder refuses it, and the other rows count.
                        None => out.extend_from_slice(b"null"),
                        Some(name) if field.is_name() => push_name(*field, name, out)?,
                        Some(number) => out.extend_from_slice(number),
                    },
                }
            }
            out.extend_from_slice(b"}\n");
        }
        Ok(())
    }
}

/// The values of a field in a batch of rows.
enum FieldValues<'a> {
    Column(Values<'a>),
    /// The same in all rows, as JSON.
    Path(&'a str),
}

/// Appends a name as JSON.
fn push_name(field: Field, name: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let text = std::str::from_utf8(name).map_err(|error| {
        let why = format!(
            "column {}: {:?} is not UTF-8 ({error}); write it as text",
            field.name(),
            String::from_utf8_lossy(name)
        );
        io::Error::new(io::ErrorKind::InvalidData, why)
    })?;
    Ok(serde_json::to_writer(out, text)?)
}

/// Rows with fields of AWS's flow logs, as records of these.
pub(super) struct FlowLogRows {
    /// Index and name of each column.
    columns: Vec<(usize, String)>,
}

impl FlowLogRows {
    /// A file with one of these columns is a flow log. AWS has underscores in the names of columns, and other programs
    /// may have the hyphens of text logs.
    pub(super) const NAMES: [&str; 6] = [
        "srcaddr",
        "dstaddr",
        "pkt_srcaddr",
        "pkt_dstaddr",
        "pkt-srcaddr",
        "pkt-dstaddr",
    ];

    /// The fields that a record needs, each with the one that may take its place.
    const NEEDED: [[&str; 2]; 4] = [
        ["srcaddr", "pkt-srcaddr"],
        ["dstaddr", "pkt-dstaddr"],
        ["bytes", "bytes"],
        ["start", "start"],
    ];

    /// # Errors
    /// If a column is missing, or has a type that is not that of AWS.
    pub(super) fn new(fields: &Fields) -> Result<FlowLogRows, String> {
        let mut columns = Vec::new();
        for (at, field) in fields.iter().enumerate() {
            let name = of_text(field.name());
            let is_plain = !name.contains(char::is_whitespace);
            if is_plain && Kind::of(field.data_type()).is_some() {
                columns.push((at, field.name().clone()));
            } else if is_flow_log_field(&name) {
                return Err(format!(
                    "column {} has the type {}; AWS writes text, and times as seconds since 1970: give AWS's own file, or \
                     write the column so",
                    field.name(),
                    field.data_type()
                ));
            }
        }
        let has = |name: &str| columns.iter().any(|(_, column)| of_text(column) == name);
        let is_missing = |names: &[&str; 2]| !names.iter().any(|name| has(name));
        match FlowLogRows::NEEDED.into_iter().find(is_missing) {
            Some([missing, _]) => Err(format!(
                "it is Parquet without the column {missing}; flow logs need srcaddr, dstaddr, bytes and start: add the \
                 field to the flow log's format"
            )),
            None => Ok(FlowLogRows { columns }),
        }
    }

    /// The names of the fields, as a text log has them.
    pub(super) fn names(&self) -> String {
        let names = self.columns.iter().map(|(_, name)| of_text(name));
        names.collect::<Vec<_>>().join(" ")
    }
}

/// The name of a column in a text log.
fn of_text(column: &str) -> String {
    column.replace('_', "-")
}

impl RowText for FlowLogRows {
    fn columns(&self) -> Vec<usize> {
        self.columns.iter().map(|(at, _)| *at).collect()
    }

    fn write(&self, batch: &RecordBatch, out: &mut Vec<u8>) -> io::Result<()> {
        let values = self.columns.iter();
        let values = values.map(|(_, name)| Values::of(batch, name));
        let values: Vec<Values<'_>> = values.collect::<io::Result<_>>()?;
        let mut digits = Vec::new();
        for row in 0..batch.num_rows() {
            for (at, values) in values.iter().enumerate() {
                if at > 0 {
                    out.push(b' ');
                }
                match values.get(row, &mut digits) {
                    None | Some([]) => out.push(b'-'),
                    // AWS has no white space in a value. A record that has some gets too many fields, and is refused.
                    Some(value) => {
                        let bytes = value.iter().map(|byte| match byte {
                            b'\n' | b'\r' => b' ',
                            byte => *byte,
                        });
                        out.extend(bytes);
                    }
                }
            }
            out.push(b'\n');
        }
        Ok(())
    }
}
