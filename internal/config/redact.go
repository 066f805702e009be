package config

import (
	"fmt"
	"log/slog"
	"reflect"
	"time"
)

// LogValue returns the keys that are set, without secrets.
func (c *Config) LogValue() slog.Value { return logStruct(reflect.ValueOf(*c)) }

func logStruct(v reflect.Value) slog.Value {
	var attrs []slog.Attr
	for name, f := range fieldsOf(v) {
		switch {
		case f.IsZero():
		case f.Kind() == reflect.Pointer && f.Elem().Kind() != reflect.Struct:
			attrs = append(attrs, slog.Any(name, f.Elem().Interface()))
		case f.Kind() == reflect.Pointer:
			attrs = append(attrs, slog.Attr{Key: name, Value: logStruct(f.Elem())})
		case f.Kind() == reflect.Struct:
			attrs = append(attrs, slog.Attr{Key: name, Value: logStruct(f)})
		case isStructSlice(f):
			for j := range f.Len() {
				attrs = append(attrs, slog.Attr{Key: fmt.Sprintf("%s[%d]", name, j), Value: logStruct(f.Index(j))})
			}
		case f.Kind() == reflect.Slice && isSecret(f):
			attrs = append(attrs, slog.Any(name, fmt.Sprintf("%v", f.Interface())))
		case f.Type() == reflect.TypeFor[ByteSize]():
			attrs = append(attrs, slog.Int64(name, f.Int()))
		case f.Type() == reflect.TypeFor[ByteRate]():
			attrs = append(attrs, slog.String(name, ByteRate(f.Int()).String()))
		case f.Type() == reflect.TypeFor[time.Duration]():
			attrs = append(attrs, slog.String(name, time.Duration(f.Int()).String())) // as in the file
		default:
			attrs = append(attrs, slog.Any(name, f.Interface()))
		}
	}
	return slog.GroupValue(attrs...)
}
