//! Values as PostgreSQL has them.

use std::error::Error;

use bytes::BytesMut;
use postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use crate::value::Value;

type Failure = Box<dyn Error + Sync + Send>;

impl ToSql for Value<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Failure> {
        match (self, ty) {
            (Self::Null, _) => Ok(IsNull::Yes),
            (Self::Integer(number), &Type::INT8) => number.to_sql(ty, out),
            (Self::Integer(number), &Type::INT4) => i32::try_from(*number)?.to_sql(ty, out),
            (Self::Integer(number), &Type::INT2) => i16::try_from(*number)?.to_sql(ty, out),
            (Self::Integer(number), &Type::BOOL) => (*number != 0).to_sql(ty, out),
            (Self::Text(text), &Type::TEXT | &Type::VARCHAR | &Type::NAME | &Type::JSON) => {
                text.as_ref().to_sql(ty, out)
            }
            (Self::Blob(bytes), &Type::BYTEA) => bytes.as_ref().to_sql(ty, out),
            (value, ty) => Err(format!("{} is given where {ty} belongs", value.what()).into()),
        }
    }

    fn accepts(_ty: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// A column of an answer.
pub(super) struct Cell(pub(super) Value<'static>);

impl<'a> FromSql<'a> for Cell {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Failure> {
        Ok(Self(match *ty {
            Type::INT8 => Value::Integer(i64::from_sql(ty, raw)?),
            Type::INT4 => Value::Integer(i32::from_sql(ty, raw)?.into()),
            Type::INT2 => Value::Integer(i16::from_sql(ty, raw)?.into()),
            Type::BOOL => Value::Integer(bool::from_sql(ty, raw)?.into()),
            Type::BYTEA => Value::Blob(raw.to_vec().into()),
            Type::TEXT | Type::VARCHAR | Type::NAME | Type::JSON => {
                Value::Text(std::str::from_utf8(raw)?.to_owned().into())
            }
            _ => return Err(format!("{ty} is none of the types that are used").into()),
        }))
    }

    fn from_sql_null(_ty: &Type) -> Result<Self, Failure> {
        Ok(Self(Value::Null))
    }

    fn accepts(_ty: &Type) -> bool {
        true
    }
}
