package kubeapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
)

// maxList is how many bytes of the body of a list are read.
const maxList = 32 << 20

// list reads a list, hands on each object, and returns the resource version of the list.
// The objects are decoded one by one: a list of all Services of a cluster is never held.
func list[T object](ctx context.Context, c *Client, path string, query url.Values, each func(T)) (version string, err error) {
	body, err := c.get(ctx, path, query)
	if err != nil {
		return "", err
	}
	defer body.Close()
	version, err = decodeList(json.NewDecoder(io.LimitReader(body, maxList)), each)
	if err != nil {
		return "", fmt.Errorf("read the Kubernetes API's list of %s: %w", path, err)
	}
	return version, nil
}

func decodeList[T object](d *json.Decoder, each func(T)) (version string, err error) {
	if err := expect(d, '{'); err != nil {
		return "", err
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return "", err
		}
		switch name {
		case "metadata":
			var m Meta
			err = d.Decode(&m)
			version = m.ResourceVersion
		case "items":
			err = decodeItems(d, each)
		default:
			var skipped json.RawMessage
			err = d.Decode(&skipped)
		}
		if err != nil {
			return "", err
		}
	}
	return version, expect(d, '}')
}

func decodeItems[T object](d *json.Decoder, each func(T)) error {
	begin, err := d.Token()
	if begin == nil || err != nil {
		return err // null: a list without items
	}
	if begin != json.Delim('[') {
		return fmt.Errorf("items are %v, not a list", begin)
	}
	for d.More() {
		var o T
		if err := d.Decode(&o); err != nil {
			return err
		}
		each(o)
	}
	return expect(d, ']')
}

func expect(d *json.Decoder, delimiter json.Delim) error {
	token, err := d.Token()
	if err == nil && token != delimiter {
		err = fmt.Errorf("%v instead of %v", token, delimiter)
	}
	return err
}
