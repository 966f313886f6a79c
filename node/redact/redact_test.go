package redact

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

func TestRedactCorefile(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		gone, kept []string
	}{
		{"nothing secret", "cluster.local:53 {\n    bind 169.254.20.10 10.96.0.10\n    cache {\n        success 9984 30\n    }\n    forward . 10.96.0.99 { # upstream\n        force_tcp\n    }\n    tls /etc/tls/node-cache-serving/cert.pem /etc/tls/private/tls.pem\n}\n",
			nil, []string{"bind 169.254.20.10 10.96.0.10", "success 9984 30", "# upstream", "/etc/tls/private/tls.pem", "force_tcp"}},
		{"TSIG", "tsig {\n  secret axfr.example. NoTCJU+DMqFWywaPyxSijrDEA/eC3nK0xi3AMEZuPVk=\n  require all\n}", []string{"NoTCJU", "eC3nK0"}, []string{"tsig {", "secret [left-out]", "require all"}},
		{"AWS", "route53 example.org.:Z1Z2Z3 {\n  aws_access_key AKIAABCDEFGHIJKLMNOP planted/secret+key\n  upstream\n}", []string{"AKIA", "planted"}, []string{"Z1Z2Z3", "upstream"}},
		{"etcd", "etcd {\n  credentials planteduser plantedpass\n  endpoint http://10.0.0.1:2379\n}", []string{"planteduser", "plantedpass"}, []string{"http://10.0.0.1:2379"}},
		{"a URL", "grpc . https://planteduser:plantedpass@10.0.0.1/x", []string{"planted"}, []string{"https://[left-out]@10.0.0.1/x"}},
		{"in quotes, over lines", "x {\n password \"planted one\nplanted two\" rest\n port 53\n}", []string{"planted"}, []string{"port 53"}},
		{"a comment", "# the password is planted1\nerrors # token: planted2\nbind 10.0.0.1", []string{"planted"}, []string{"errors", "bind 10.0.0.1"}},
		{"an option of the same line", "x { token planted55 }", []string{"planted"}, []string{"x { token [left-out] }"}},
		{"used again elsewhere", "x {\n api_key planted77\n}\nlog planted77", []string{"planted"}, []string{"log [left-out]"}},
		{"an environment variable", "x {\n secret {$TSIG_SECRET} {%OTHER%}\n}", nil, []string{"secret {$TSIG_SECRET} {%OTHER%}"}},
		{"a key in base64 anywhere", "plugin option c2VjcmV0LXBsYW50ZWQtMTIzNDU2Nzg5MDEyMw==", []string{"c2VjcmV0"}, []string{"plugin option"}},
		{"names that only look so", "cluster.local {\n  template IN A tokens.example.org\n  hosts /etc/secrets-of-the-house/hosts2\n}", nil, []string{"tokens.example.org", "/etc/secrets-of-the-house/hosts2"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var r Redactor
			got := r.Corefile(tc.text)
			checkRedacted(t, got, tc.gone, tc.kept)
			if len(tc.gone) > 0 == (r.count == 0) {
				t.Errorf("%d were left out", r.count)
			}
			if strings.Count(got, "\n") > strings.Count(tc.text, "\n") {
				t.Errorf("it has more lines now:\n%s", got)
			}
		})
	}
}

func checkRedacted(t *testing.T, got string, gone, kept []string) {
	t.Helper()
	for _, s := range gone {
		if strings.Contains(got, s) {
			t.Errorf("%q is still there:\n%s", s, got)
		}
	}
	for _, s := range kept {
		if !strings.Contains(got, s) {
			t.Errorf("%q is gone:\n%s", s, got)
		}
	}
}

const plantedPEM = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIPlantedPlantedPlantedPlanted0000000000\noAoGCCqGSM49\n-----END EC PRIVATE KEY-----"

func TestRedactText(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		gone, kept []string
	}{
		{"a private key", "before\n" + plantedPEM + "\nafter", []string{"Planted", "oAoG", "EC PRIVATE"}, []string{"before\n", "\nafter"}},
		{"a private key that is cut off", "before\n" + plantedPEM[:60], []string{"Planted"}, []string{"before"}},
		{"HTTP", "Authorization: Bearer planted.token-1234\nAuthorization: Basic cGxhbnRlZDpwbGFudGVk\nok", []string{"planted", "cGxhbnRl"}, []string{"Authorization: Bearer [left-out]", "ok"}},
		{"a service account's token", "token eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2ln_planted refused", []string{"eyJ", "planted"}, []string{"refused"}},
		{"name and value", `msg="login" password=planted1 db_password: "planted two" api-key='planted3' &token=planted4&x=1`, []string{"planted"}, []string{"login", "x=1", "password="}},
		{"quotes in quotes", `a password="pl\"anted1" b, msg="token=\"planted two\" refused", {"log": "{\"secret\": \"planted3\"}"} end`, []string{"planted", "anted1", "two"}, []string{"a password=", " b, msg=", "refused", "end"}},
		{"a command line", "exec: x --token planted1 -db-password planted2 --verbose --secret-file --listen :53, no token is there", []string{"planted"}, []string{"--verbose --secret-file --listen :53", "no token is there"}},
		{"tokens with a name", "ghp_abcdefghij0123456789ABCD glpat-plantedplanted12 xoxb-1234567890-planted", []string{"ghp_", "glpat", "xoxb"}, nil},
		{"what a log is full of", "[INFO] 10.244.0.3:41234 - 4711 \"A IN kube-dns.kube-system.svc.cluster.local. udp 40 false 512\" NOERROR qr,aa,rd 56 0.0001s\n[ERROR] plugin/errors: 2 example.org. A: read udp 10.0.0.1:40000->10.96.0.99:53: i/o timeout",
			nil, []string{"kube-dns.kube-system.svc.cluster.local.", "i/o timeout", "qr,aa,rd"}},
		{"identities that are no secrets", "boot fb963509-dbe8-4aa1-9331-50acd1164f11 table trackless-0123456789abcdef", nil, []string{"fb963509-dbe8-4aa1-9331-50acd1164f11", "trackless-0123456789abcdef"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			checkRedacted(t, new(Redactor).Text(tc.text), tc.gone, tc.kept)
		})
	}
}

func TestRedactEnvironment(t *testing.T) {
	var r Redactor
	r.RememberEnvironment([]string{"DB_PASSWORD=plantedvalue", "TOKEN=abc", "HOME=/root", "AWS_SECRET_ACCESS_KEY=plantedaws", "KEY=" + os.TempDir(), "PATH=/bin"})
	checkRedacted(t, r.Text("plantedvalue and plantedaws, abc in /root and "+os.TempDir()), []string{"planted"}, []string{"abc", "/root", os.TempDir()})
}

func TestRedactJSON(t *testing.T) {
	var r Redactor
	r.Remember("plantedvalue")
	for _, text := range []string{
		`{"a": "token=planted1", "n": 12, "list": ["https://planted:x@h/", "plantedvalue"]}`,
		`{"password": 5, "secret": "planted5", "b": {"c": "x"}}`,
	} {
		got := r.JSON([]byte(text))
		if !json.Valid(got) || strings.Contains(string(got), "planted") {
			t.Errorf("%s", got)
		}
	}
}
