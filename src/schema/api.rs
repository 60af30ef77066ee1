//! Parameters that come from no command line: the pairs of a configuration's section, and objects of the API. Both are
//! checked by the same table and refused with the same words.

use serde_json::{Map, Number, Value};

use super::{Command, Kind, Opt, Params, Properties, PropertyString, UsageError};

const UNDEFINED: &str = "property is not defined in schema and the schema does not allow additional properties";

/// From keys and values as they stand in a section.
pub(super) fn from_pairs<'a>(
    command: &'static Command,
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Params, UsageError> {
    let (mut params, mut errors) = (Params::default(), Vec::new());
    for (key, value) in pairs {
        match command.option(key) {
            None => errors.push((key.to_owned(), UNDEFINED.to_owned())),
            Some(opt) if params.has(key) && !matches!(opt.kind, Kind::Array) => {
                errors.push((key.to_owned(), "duplicate attribute".to_owned()));
            }
            Some(opt) => params.push(opt.name, value.to_owned()),
        }
    }
    if errors.is_empty() { params.verified(command) } else { Err(UsageError::params(command, &errors)) }
}

/// From an object of the API. A `null` counts as not given.
pub(super) fn from_json(command: &'static Command, object: &Map<String, Value>) -> Result<Params, UsageError> {
    let (mut params, mut errors) = (Params::default(), Vec::new());
    for (key, value) in object.iter().filter(|(_, value)| !value.is_null()) {
        match command.option(key).ok_or_else(|| UNDEFINED.to_owned()).and_then(|opt| Ok((opt, texts(opt, value)?))) {
            Ok((opt, values)) => values.into_iter().for_each(|value| params.push(opt.name, value)),
            Err(reason) => errors.push((key.clone(), reason)),
        }
    }
    if errors.is_empty() { params.verified(command) } else { Err(UsageError::params(command, &errors)) }
}

/// The object that [`from_json`] reads: typed values, lists as text, property strings as objects.
pub(super) fn to_json(command: &'static Command, params: &Params) -> Map<String, Value> {
    let value = |name: &'static str, values: &[String]| match command.option(name)?.kind {
        Kind::Array => Some(values.iter().cloned().map(Value::from).collect()),
        Kind::List(_) => Some(params.items(command, name).join(",").into()),
        Kind::Property(shape) => {
            let given = params.properties(command, name)?;
            Some(given.iter().map(|(key, text)| (key.to_owned(), scalar(shape.key(key), text))).collect())
        }
        _ => Some(scalar(command.option(name), values.first()?)),
    };
    params.iter().filter_map(|(name, values)| Some((name.to_owned(), value(name, values)?))).collect()
}

/// A checked value in its type.
fn scalar(opt: Option<&Opt>, text: &str) -> Value {
    let number = match opt.map(|opt| opt.kind) {
        Some(Kind::Bool | Kind::Integer { .. }) => text.trim_start_matches('+').parse::<i64>().ok().map(Number::from),
        Some(Kind::Number) => text.parse::<f64>().ok().and_then(Number::from_f64),
        _ => None,
    };
    number.map_or_else(|| text.into(), Value::Number)
}

/// The value(s) of an option as they would stand on a command line, unchecked.
fn texts(opt: &Opt, value: &Value) -> Result<Vec<String>, String> {
    match (opt.kind, value) {
        (Kind::Array, Value::Array(items)) => items.iter().map(|item| text(opt, item)).collect(),
        (Kind::List(_) | Kind::Property(_), Value::Array(items)) => {
            let items = items.iter().map(|item| text(opt, item)).collect::<Result<Vec<_>, _>>()?;
            Ok(vec![items.join(",")])
        }
        (Kind::Property(shape), Value::Object(object)) => Ok(vec![property(opt, shape, object)?]),
        _ => Ok(vec![text(opt, value)?]),
    }
}

fn property(opt: &Opt, shape: &'static PropertyString, object: &Map<String, Value>) -> Result<String, String> {
    // Checked pair by pair: a comma in a value must not become another pair.
    let given = object.iter().filter(|(_, value)| !value.is_null());
    let pairs = given.map(|(key, value)| Ok((key.clone(), text(opt, value)?))).collect::<Result<_, String>>()?;
    Properties::from_pairs(opt.name, pairs, shape)
        .map(|given| given.to_string())
        .map_err(|reason| format!("invalid format - {reason}\n"))
}

fn text(opt: &Opt, value: &Value) -> Result<String, String> {
    let got = match value {
        Value::String(text) => return Ok(text.clone()),
        Value::Number(number) => return Ok(number.to_string()),
        Value::Bool(on) => return Ok(u8::from(*on).to_string()),
        Value::Null => "null",
        Value::Array(_) => "ARRAY",
        Value::Object(_) => "HASH",
    };
    let wanted = match opt.kind {
        Kind::Bool => "boolean",
        Kind::Integer { .. } => "integer",
        Kind::Number => "number",
        Kind::Array => "array",
        Kind::Text(_) | Kind::List(_) | Kind::Enum(_) | Kind::Property(_) => "string",
    };
    Err(format!("type check ('{wanted}') failed - got {got}"))
}
