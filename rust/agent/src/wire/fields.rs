//! Typed access to the fields of a request. An error names the field.
use super::value::Value;
use crate::fault::Fault;

pub const PATH_BYTES_MAX: usize = 4_096;

#[derive(Clone, Copy)]
pub struct Fields<'a>(pub &'a Value);

fn wrong(name: &str, wanted: &str) -> Fault {
    Fault::invalid_argument(format!("{name} must be {wanted}"))
}

impl<'a> Fields<'a> {
    /// The field, unless it is absent or nil.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| **value != Value::Nil)
    }

    fn need<T>(name: &str, value: Option<T>) -> Result<T, Fault> {
        value.ok_or_else(|| Fault::invalid_argument(format!("{name} is missing")))
    }

    pub fn opt_str(&self, name: &str) -> Result<Option<&'a str>, Fault> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Str(text)) if !text.contains('\0') => Ok(Some(text)),
            Some(_) => Err(wrong(name, "a string without NUL")),
        }
    }

    pub fn str(&self, name: &str) -> Result<&'a str, Fault> {
        Self::need(name, self.opt_str(name)?)
    }

    /// A str or bin, without NUL bytes.
    pub fn opt_bytes(&self, name: &str) -> Result<Option<&'a [u8]>, Fault> {
        self.get(name).map(|value| bytes_of(name, value)).transpose()
    }

    pub fn path(&self, name: &str) -> Result<&'a [u8], Fault> {
        let path = Self::need(name, self.opt_bytes(name)?)?;
        if path.is_empty() || path.len() > PATH_BYTES_MAX {
            return Err(wrong(name, &format!("1 to {PATH_BYTES_MAX} bytes long")));
        }
        Ok(path)
    }

    pub fn opt_bool(&self, name: &str) -> Result<Option<bool>, Fault> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(wrong(name, "true or false")),
        }
    }

    pub fn bool_or(&self, name: &str, default: bool) -> Result<bool, Fault> {
        Ok(self.opt_bool(name)?.unwrap_or(default))
    }

    /// A number from 0; JavaScript may send a whole one as a float.
    pub fn opt_u64(&self, name: &str) -> Result<Option<u64>, Fault> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => number_of(value).map(Some).ok_or_else(|| wrong(name, "a whole number from 0")),
        }
    }

    pub fn u64(&self, name: &str) -> Result<u64, Fault> {
        Self::need(name, self.opt_u64(name)?)
    }

    pub fn opt_in(&self, name: &str, min: u64, max: u64) -> Result<Option<u64>, Fault> {
        match self.opt_u64(name)? {
            Some(number) if number < min || number > max => Err(wrong(name, &format!("{min} to {max}"))),
            number => Ok(number),
        }
    }

    pub fn opt_u16(&self, name: &str) -> Result<Option<u16>, Fault> {
        let number = self.opt_in(name, 0, u64::from(u16::MAX))?;
        Ok(number.and_then(|number| u16::try_from(number).ok()))
    }

    pub fn opt_u32(&self, name: &str) -> Result<Option<u32>, Fault> {
        let number = self.opt_in(name, 0, u64::from(u32::MAX))?;
        Ok(number.and_then(|number| u32::try_from(number).ok()))
    }

    pub fn opt_fields(&self, name: &str) -> Result<Option<Fields<'a>>, Fault> {
        match self.get(name) {
            None => Ok(None),
            Some(value @ Value::Map(_)) => Ok(Some(Fields(value))),
            Some(_) => Err(wrong(name, "a map")),
        }
    }

    pub fn opt_array(&self, name: &str) -> Result<Option<&'a [Value]>, Fault> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(_) => Err(wrong(name, "an array")),
        }
    }

    /// An array of str or bin.
    pub fn opt_list(&self, name: &str) -> Result<Option<Vec<&'a [u8]>>, Fault> {
        match self.opt_array(name)? {
            None => Ok(None),
            Some(items) => items.iter().map(|item| bytes_of(name, item)).collect::<Result<_, _>>().map(Some),
        }
    }

    /// Environment variables: names without `=` and NUL, values without NUL.
    pub fn environment(&self, name: &str) -> Result<Vec<(&'a str, &'a [u8])>, Fault> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Map(entries)) => entries
                .iter()
                .map(|(key, value)| {
                    if key.is_empty() || key.contains(['=', '\0']) {
                        return Err(wrong(name, "made of names without = and NUL"));
                    }
                    // Values may be secret: the error does not show them.
                    Ok((key.as_str(), bytes_of(name, value)?))
                })
                .collect(),
            Some(_) => Err(wrong(name, "a map")),
        }
    }
}

pub fn number_of(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::UInt(number) => Some(*number),
        Value::Float(number) if *number >= 0.0 && *number < 9.0e15 && number.fract() == 0.0 => Some(*number as u64),
        _ => None,
    }
}

pub fn bytes_of<'a>(name: &str, value: &'a Value) -> Result<&'a [u8], Fault> {
    let bytes = match value {
        Value::Str(text) => text.as_bytes(),
        Value::Bin(bytes) => bytes.as_slice(),
        _ => return Err(wrong(name, "a string")),
    };
    if bytes.contains(&0) {
        return Err(wrong(name, "without NUL bytes"));
    }
    Ok(bytes)
}
