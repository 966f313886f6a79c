package main

import (
	"bytes"
	"regexp"
	"strings"
	"time"

	"github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"
)

const (
	module      = "github.com/trackless-dns/trackless"
	noAssertion = "NOASSERTION"
)

// sbom writes what is in the programs, by SPDX 2.3. Namespace and time are
// those of the commit, so that the same release has the same document.
func (r Release) sbom(deps []Dependency) error {
	product := &spdx.Package{
		PackageName:               "trackless",
		PackageSPDXIdentifier:     "trackless",
		PackageVersion:            r.Version,
		PackageSupplier:           &common.Supplier{SupplierType: "Organization", Supplier: "The Trackless authors"},
		PackageDownloadLocation:   "git+https://" + module + "@" + r.Commit,
		PackageLicenseConcluded:   "Apache-2.0",
		PackageLicenseDeclared:    "Apache-2.0",
		PackageCopyrightText:      noAssertion,
		PrimaryPackagePurpose:     "APPLICATION",
		PackageExternalReferences: purl(module, "v"+r.Version),
	}
	for _, p := range r.Programs {
		digest, err := fileDigest(p.Path)
		if err != nil {
			return err
		}
		product.PackageComment += "SHA-256 of the program for " + p.Arch + ": " + digest + "\n"
	}
	doc := &spdx.Document{
		SPDXVersion:       spdx.Version,
		DataLicense:       spdx.DataLicense,
		SPDXIdentifier:    "DOCUMENT",
		DocumentName:      r.name(""),
		DocumentNamespace: "https://" + module + "/spdx/" + r.Version + "-" + r.Commit,
		CreationInfo: &spdx.CreationInfo{
			Created:  r.Created.Format(time.RFC3339),
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "trackless-release-" + r.Version}, {CreatorType: "Organization", Creator: "The Trackless authors"}},
		},
		Packages:      []*spdx.Package{product},
		Relationships: []*spdx.Relationship{{RefA: element("DOCUMENT"), RefB: element("trackless"), Relationship: "DESCRIBES"}},
	}
	for _, d := range deps {
		id := spdxID(d.Path + "-" + d.Version)
		p := &spdx.Package{
			PackageName:               d.Path,
			PackageSPDXIdentifier:     id,
			PackageVersion:            d.Version,
			PackageDownloadLocation:   "https://proxy.golang.org/" + escaped(d.Path) + "/@v/" + escaped(d.Version) + ".zip",
			PackageLicenseConcluded:   d.License,
			PackageLicenseDeclared:    d.License,
			PackageCopyrightText:      noAssertion,
			PrimaryPackagePurpose:     "LIBRARY",
			PackageExternalReferences: purl(d.Path, d.Version),
		}
		if d.Sum != "" {
			p.PackageSourceInfo = "go.sum: " + d.Sum
		}
		if d.Path == standardLibrary {
			p.PackageVersion = strings.TrimPrefix(d.Version, "go")
			p.PackageDownloadLocation = "https://go.dev/dl/" + d.Version + ".src.tar.gz"
			p.PackageExternalReferences = purl(standardLibrary, p.PackageVersion)
		}
		doc.Packages = append(doc.Packages, p)
		doc.Relationships = append(doc.Relationships, &spdx.Relationship{RefA: element("trackless"), RefB: element(id), Relationship: "DEPENDS_ON"})
	}
	var out bytes.Buffer
	if err := json.Write(doc, &out, json.Indent("  "), json.EscapeHTML(false)); err != nil {
		return err
	}
	return r.file(r.name(".spdx.json"), out.Bytes())
}

func element(id common.ElementID) common.DocElementID {
	return common.MakeDocElementID("", string(id))
}

// purl is the name by which scanners look a Go module up (purl-spec, type golang).
func purl(path, version string) []*spdx.PackageExternalReference {
	return []*spdx.PackageExternalReference{{
		Category: "PACKAGE-MANAGER",
		RefType:  "purl",
		Locator:  "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B"),
	}}
}

var notInID = regexp.MustCompile(`[^A-Za-z0-9.-]`)

// spdxID is an identifier of letters, digits, dots and dashes (SPDX 2.3, 7.2).
func spdxID(s string) common.ElementID {
	return common.ElementID("module-" + notInID.ReplaceAllString(s, "-"))
}

var capital = regexp.MustCompile(`[A-Z]`)

// escaped writes a path or a version as the module proxy's file names do
// (go.dev/ref/mod, "Module proxy", case encoding).
func escaped(s string) string {
	return capital.ReplaceAllStringFunc(s, func(c string) string { return "!" + strings.ToLower(c) })
}
