package table

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
)

const statesHelp = `States of packets, as firewall rules ask for them ("ct state", "-m conntrack
--ctstate"). They are not stored: they say how a packet relates to the table.

  NEW          The first packet of a flow, or a further one in the same direction
               while no answer was seen. Making the entry costs a place in the
               table; NAT is decided now and never again.
  ESTABLISHED  A packet of a flow that was seen in both directions. For UDP, and so
               for DNS, from the first answer on. Not TCP's ESTABLISHED.
  RELATED      A new flow that belongs to a known one: an ICMP error about it, or
               the data connection that a helper (ftp, sip) foresaw. The entry has
               the status EXPECTED and names its master.
  INVALID      A packet that fits no flow: out of TCP's window, an answer to a
               forgotten entry, a broken checksum. It passes without NAT unless a
               rule drops it; a client behind a Service sees it as a reset or as
               silence. The counter is "invalid" in trackless conntrack stats.
  UNTRACKED    A packet that a NOTRACK rule took out before the table was asked.
               No entry, no NAT, no limit, no race: what Trackless does with DNS.

States of entries, as "trackless conntrack list" shows them and --state selects.

  TCP (seen from the middle, for both ends at once; timeouts are the defaults)
  NONE         made by hand; packets never leave an entry here
  SYN_SENT     a SYN, no answer yet                                        2 min
  SYN_RECV     SYN and SYN-ACK                                             1 min
  ESTABLISHED  the handshake is complete                                   5 days
  FIN_WAIT     the first FIN                                               2 min
  CLOSE_WAIT   the other side acknowledged it and keeps its half open      1 min
  LAST_ACK     both FINs, the last acknowledgement is missing              30 s
  TIME_WAIT    closed; late segments may come                              2 min
  CLOSE        a reset                                                     10 s
  SYN_SENT2    both sides sent a SYN (simultaneous open)                   2 min

  UDP, GRE, ICMP and the rest (the kernel knows timeouts only; the names are ours)
  UNREPLIED    packets in one direction                        UDP 30 s, ICMP 30 s
  REPLIED      packets in both directions                      UDP 30 s still
  STREAM       both directions and alive after two seconds     UDP 2 min, GRE 3 min
               A stub resolver that reuses its port makes its entry a STREAM.

  SCTP
  CLOSED COOKIE_WAIT COOKIE_ECHOED ESTABLISHED SHUTDOWN_SENT SHUTDOWN_RECD
  SHUTDOWN_ACK_SENT HEARTBEAT_SENT, after RFC 9260 section 4.

Status bits of entries, which --status selects ("!" before a name: not set).

  SEEN_REPLY     packets came both ways. Its absence is shown as UNREPLIED.
  ASSURED        worth keeping: when the table is full, entries without this bit are
                 evicted first (early_drop), and if there are none new packets are
                 dropped (drop). TCP is assured from the end of the handshake on,
                 UDP as a STREAM. A single DNS query never is.
  CONFIRMED      the first packet passed the last hook: the entry is in the table.
  SRC_NAT        the source is rewritten (SNAT, masquerade).
  DST_NAT        the destination is rewritten (DNAT): what a Service is.
  SRC_NAT_DONE, DST_NAT_DONE   it was decided whether to; set on most entries.
  SEQ_ADJUST     NAT changed the length of the stream; sequence numbers are shifted.
  EXPECTED       made by an expectation: RELATED to its master.
  FIXED_TIMEOUT  packets do not refresh the timeout.
  DYING          removed, not yet freed; in destroy events.
  TEMPLATE       carries a zone or helper from rules to packets; no flow.
  HELPER         a helper was attached by a rule.
  OFFLOAD, HW_OFFLOAD   in a flow table of the kernel or of the network card: its
                 packets pass connection tracking by, and its timeout stands still.
  UNTRACKED      not used since Linux 4.12; untracked packets have no entry.
`

func helpCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "help [states]",
		Short: "Explain the states and status bits",
		Args:  cli.UnknownVerb,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Parent().Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "states",
		Short: "Explain NEW, ESTABLISHED, RELATED, INVALID, UNTRACKED, TIME_WAIT, ASSURED ...",
		Args:  cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), statesHelp)
			return err
		},
	})
	return cmd
}
