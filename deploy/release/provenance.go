package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"

	provenance "github.com/in-toto/attestation/go/predicates/provenance/v1"
	intoto "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	predicateType = "https://slsa.dev/provenance/v1"
	buildType     = "https://github.com/trackless-dns/trackless/blob/main/docs/release.md#how-it-is-built"
	builder       = "https://github.com/trackless-dns/trackless/blob/main/docs/release.md#who-builds-it"
)

// provenance writes an in-toto statement with a predicate of SLSA: what the
// files of the folder were built from. It is not signed; who vouches for it
// signs it. It names no time of a build, since every build is the same.
func (r Release) provenance(digest string, deps []Dependency) error {
	names, err := r.names()
	if err != nil {
		return err
	}
	subjects := []*intoto.ResourceDescriptor{{Name: r.image(), Digest: map[string]string{"sha256": strings.TrimPrefix(digest, "sha256:")}}}
	for _, name := range names {
		sum, err := r.digestOf(name)
		if err != nil {
			return err
		}
		subjects = append(subjects, &intoto.ResourceDescriptor{Name: name, Digest: map[string]string{"sha256": sum}})
	}
	sums, err := fileDigest(filepath.Join(r.Source, "go.sum"))
	if err != nil {
		return err
	}
	var archs []any
	for _, p := range r.Programs {
		archs = append(archs, p.Arch)
	}
	external, err := structpb.NewStruct(map[string]any{
		"target": "release", "version": r.Version, "registry": r.Registry, "architectures": archs,
	})
	if err != nil {
		return err
	}
	toolchain := deps[len(deps)-1].Version
	predicate := &provenance.Provenance{
		BuildDefinition: &provenance.BuildDefinition{
			BuildType:          buildType,
			ExternalParameters: external,
			ResolvedDependencies: []*intoto.ResourceDescriptor{
				{Name: "sources", Uri: "git+https://" + module, Digest: map[string]string{"gitCommit": r.Commit}},
				{Name: "modules", Uri: "git+https://" + module + "#go.sum", Digest: map[string]string{"sha256": sums}},
				{Name: "toolchain", Uri: "pkg:golang/" + standardLibrary + "@" + strings.TrimPrefix(toolchain, "go")},
			},
		},
		RunDetails: &provenance.RunDetails{Builder: &provenance.Builder{Id: builder}},
	}
	if err := predicate.Validate(); err != nil {
		return err
	}
	fields, err := toStruct(predicate)
	if err != nil {
		return err
	}
	statement := &intoto.Statement{
		Type:          intoto.StatementTypeUri,
		Subject:       subjects,
		PredicateType: predicateType,
		Predicate:     fields,
	}
	if err := statement.Validate(); err != nil {
		return err
	}
	b, err := stable(statement)
	if err != nil {
		return err
	}
	return r.file(r.name(".intoto.json"), b)
}

func toStruct(m proto.Message) (*structpb.Struct, error) {
	b, err := protojson.Marshal(m)
	if err != nil {
		return nil, err
	}
	s := &structpb.Struct{}
	return s, protojson.Unmarshal(b, s)
}

// stable is the JSON of a message. That of protojson has spaces at random.
func stable(m proto.Message) ([]byte, error) {
	b, err := protojson.Marshal(m)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return nil, err
	}
	return append(out.Bytes(), '\n'), nil
}
