//! Checks one value against its type. The error texts are those that scripts and people know.

use std::sync::LazyLock;

use regex::Regex;

use super::words::split_list;
use super::{Format, Kind, Opt, Properties, Vmid};

static INTEGER: LazyLock<Regex> = LazyLock::new(|| regex(r"^[+-]?[0-9]+$"));
static NUMBER: LazyLock<Regex> = LazyLock::new(|| regex(r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)$"));
static STORAGE: LazyLock<Regex> = LazyLock::new(|| regex(r"^[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]$"));
static NODE: LazyLock<Regex> = LazyLock::new(|| regex(r"^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$"));
static MAIL: LazyLock<Regex> = LazyLock::new(|| regex(r"^[\w+~-]+(\.[\w+~-]+)*(@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*)?$"));

fn regex(pattern: &'static str) -> Regex {
    Regex::new(pattern).expect("the patterns above are constant and tested")
}

/// A boolean in any of its spellings.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "on" | "yes" | "true" => Some(true),
        "0" | "off" | "no" | "false" => Some(false),
        _ => None,
    }
}

/// Checks `value` for `opt`; returns it cleaned: booleans as `0` or `1`, property strings in canonical order.
///
/// # Errors
/// The reason, as it stands after `name: `. Reasons of formats end with a line feed, as in the real program.
pub fn check_value(opt: &Opt, value: &str) -> Result<String, String> {
    match opt.kind {
        Kind::Bool => match parse_bool(value) {
            Some(on) => return Ok(if on { "1" } else { "0" }.to_owned()),
            None => return Err(format!("type check ('boolean') failed - got '{value}'")),
        },
        Kind::Integer { min, max } => {
            if !INTEGER.is_match(value) {
                return Err(format!("type check ('integer') failed - got '{value}'"));
            }
            // What does not fit is beyond every bound; without a bound it is no usable number.
            let number = value.trim_start_matches('+').parse::<i64>();
            let negative = value.starts_with('-');
            if let Some(min) = min.filter(|min| number.as_ref().map_or(negative, |n| n < min)) {
                return Err(format!("value must have a minimum value of {min}"));
            }
            if let Some(max) = max.filter(|max| number.as_ref().map_or(!negative, |n| n > max)) {
                return Err(format!("value must have a maximum value of {max}"));
            }
            if number.is_err() {
                return Err(format!("type check ('integer') failed - got '{value}'"));
            }
        }
        Kind::Number => {
            if !NUMBER.is_match(value) {
                return Err(format!("type check ('number') failed - got '{value}'"));
            }
            if value.starts_with('-') && value.parse::<f64>().is_ok_and(|n| n < 0.0) {
                return Err("value must have a minimum value of 0".into());
            }
        }
        Kind::Enum(words) => {
            if !words.contains(&value) {
                let words = words.join(", ");
                return Err(format!("value '{value}' does not have a value in the enumeration '{words}'"));
            }
        }
        Kind::Text(format) => check_format(format, value)?,
        Kind::List(format) => split_list(value).iter().try_for_each(|item| check_format(format, item))?,
        Kind::Array => single_line(value)?,
        Kind::Property(shape) => {
            return Properties::parse(opt.name, value, shape)
                .map(|given| given.to_string())
                .map_err(|reason| format!("invalid format - {reason}\n"));
        }
    }
    if let Some(max) = opt.max_length.filter(|max| value.chars().count() > *max) {
        return Err(format!("value may only be {max} characters long"));
    }
    Ok(value.to_owned())
}

/// A line feed or NUL in a path or a template would break the logs and files it ends up in.
fn single_line(value: &str) -> Result<(), String> {
    match value {
        _ if value.contains('\0') => Err("contains a NUL character\n".into()),
        _ if value.contains(['\n', '\r']) => Err("contains a line feed\n".into()),
        _ => Ok(()),
    }
}

fn check_format(format: Format, value: &str) -> Result<(), String> {
    let reason = match format {
        Format::Directory | Format::Archive | Format::ContainerArchive if value.is_empty() => {
            return Err("value must be at least 1 characters long".into());
        }
        Format::Any | Format::File | Format::Directory | Format::Archive | Format::ContainerArchive | Format::Pool => {
            return single_line(value);
        }
        Format::Lines if value.contains('\0') => return Err("contains a NUL character\n".into()),
        Format::StorageId if !STORAGE.is_match(value) => format!("storage ID '{value}' contains illegal characters"),
        Format::Vmid if value.parse::<Vmid>().is_err() => "value does not look like a valid VM ID".to_owned(),
        Format::Node if !NODE.is_match(value) => "value does not look like a valid node name".to_owned(),
        Format::Mail if !MAIL.is_match(value) => {
            "value does not look like a valid email address or user name".to_owned()
        }
        Format::Token if value.is_empty() || value.contains(|c: char| c.is_whitespace() || c == '\0') => {
            return Err("value does not match the regex pattern".into());
        }
        _ => return Ok(()),
    };
    Err(format!("invalid format - {reason}\n"))
}
