/* SPDX-License-Identifier: Apache-2.0 */
/* Answers DNS queries of pods from records that the cache has published.
 *
 * The program runs at tc ingress of a pod's device. A query that it can answer
 * leaves by the same device as the reply; netfilter never sees it. Everything
 * else passes on unchanged: the program writes nothing before it is certain of
 * the answer. It uses only what linux/bpf.h has since Linux 5.8, and no direct
 * packet writes, for which the kernel would unclone every packet.
 *
 * The layouts below are shared with layout.go. */
#include "helpers.h"

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "records hold their numbers with the least significant byte first"
#endif

#define swap16(x) __builtin_bswap16(x)
#define swap32(x) __builtin_bswap32(x)

/* barrier hides where a value comes from, so that the compiler keeps its bounds
 * as they are written. The verifier needs them in that form. */
#define barrier(x) asm volatile("" : "+r"(x))

enum {
	UNIT = 64,          /* bytes of a unit; a record is some units in a row */
	WAYS = 8,           /* slots of a bucket */
	MAX_NAME = 128,     /* the longest name in a record */
	MAX_BODY = 512,     /* the longest body of a record */
	MAX_TTLS = 12,      /* the most records in an answer */
	DNS_HEADER = 12,
	OPT = 11,           /* an OPT record without options */
	MIN_SIZE = 512,     /* a reply that every client accepts */
};

/* What becomes of a packet, and at which index it is counted. */
enum {
	OTHER,              /* not counted: no query to a listen address */
	MISS,
	CLOSED,             /* the gate is closed */
	HEADER,             /* opcode, flags or sections that records do not have */
	NAME,               /* no name, or one that is too long */
	EDNS,               /* options, a version, an unknown additional record */
	CLASS,              /* other than IN */
	STALE,              /* expired, or due to be asked again */
	LARGE,              /* larger than the client accepts */
	FRAGMENT,           /* or IP options, no sum, or to a hardware address of others */
	FAILED,             /* a helper refused */
	UNREPORTED,         /* a hit whose flow found no room in the ring */
	FIRST_CLASS = 16,   /* hits are counted from here on, by the record's class */
	CLASSES = 512,
	WITH_EDNS = 1,      /* and by these two */
	OVER_IPV6 = 2,
	VARIANTS = 4,
	LISTENERS = 128,
	PORTS = 4096,
};

struct control {
	__u64 seed;         /* of the hash of names */
	__u32 bucket_mask;  /* buckets - 1 */
	__u32 zero;
	__u64 ports;        /* bit port % 64 is set for each listener's port */
	/* CLOCK_MONOTONIC, nanoseconds: a listener's queries are answered before it. */
	__u64 open_until[LISTENERS];
};

struct listener_key {
	__u8 addr[16];      /* IPv4 as ::ffff:a.b.c.d */
	__u16 port;         /* network order */
	__u16 zero[3];
};

struct listener {
	__u16 number;
	__u16 size;         /* a client that accepts larger replies is left to the server */
};

struct bridge {
	__u8 mac[ETH_ALEN];
	__u8 zero[2];
};

struct bucket {
	__u64 slot[WAYS];   /* tag << 32 | index of the first unit; 0 is empty */
};

/* The first unit of a record. It does not change while a slot refers to it, but
 * for hits. */
struct record {
	__u64 stored;       /* CLOCK_MONOTONIC, nanoseconds */
	__u32 ttl;          /* seconds from then */
	__u32 serve;        /* answered while fewer seconds have passed */
	__u16 flags;        /* network order, as are counts and type */
	__u16 counts[3];    /* answer, authority, additional */
	__u16 type;
	__u8 name_len;
	__u8 key;           /* listener << 1 | DO */
	__u16 body_len;
	__u16 class;
	__u16 sum;          /* of the body with every TTL zero, as if it began at an even offset */
	__u8 ttls;
	__u8 odd_ttls;      /* how many of them begin at an odd offset of the body */
	__u32 hits;
	__u64 name[3];      /* lower case, zeros behind it */
};

/* The second unit. A third one has name[8..15] where the name is longer than
 * that; then comes the body. */
struct more {
	__u16 ttl[MAX_TTLS]; /* offsets in the body */
	__u64 name[5];
};

struct unit {
	__u64 word[UNIT / 8];
};

struct flow {
	__u8 client[16];
	__u8 server[16];
	__u16 client_port;  /* network order */
	__u16 server_port;
	__u32 zero;
};

struct {
	UINT(type, BPF_MAP_TYPE_ARRAY);
	TYPE(key, __u32);
	TYPE(value, struct control);
	UINT(max_entries, 1);
	UINT(map_flags, BPF_F_MMAPABLE);
} control SEC(".maps");

struct {
	UINT(type, BPF_MAP_TYPE_HASH);
	TYPE(key, struct listener_key);
	TYPE(value, struct listener);
	UINT(max_entries, LISTENERS);
} listeners SEC(".maps");

/* The hardware address of the bridge, by the index of the port's device. */
struct {
	UINT(type, BPF_MAP_TYPE_HASH);
	TYPE(key, __u32);
	TYPE(value, struct bridge);
	UINT(max_entries, PORTS);
	UINT(map_flags, BPF_F_NO_PREALLOC);
} bridges SEC(".maps");

struct {
	UINT(type, BPF_MAP_TYPE_ARRAY);
	TYPE(key, __u32);
	TYPE(value, struct bucket);
	UINT(max_entries, 1);
	UINT(map_flags, BPF_F_MMAPABLE);
} buckets SEC(".maps");

struct {
	UINT(type, BPF_MAP_TYPE_ARRAY);
	TYPE(key, __u32);
	TYPE(value, struct unit);
	UINT(max_entries, 1);
	UINT(map_flags, BPF_F_MMAPABLE);
} units SEC(".maps");

struct {
	UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	TYPE(key, __u32);
	TYPE(value, __u64);
	UINT(max_entries, FIRST_CLASS + CLASSES * VARIANTS);
} counts SEC(".maps");

struct {
	UINT(type, BPF_MAP_TYPE_RINGBUF);
	UINT(max_entries, 1 << 19);
} flows SEC(".maps");

/* The headers of a query, as they are rewritten for the reply. */
struct headers4 {
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
	__u16 dns[6];
} __attribute__((packed, aligned(2)));

struct headers6 {
	struct ethhdr eth;
	struct ipv6hdr ip;
	struct udphdr udp;
	__u16 dns[6];
} __attribute__((packed, aligned(2)));

/* What is read or written at offsets that vary, or in parts of a word: the verifier allows
 * that in maps, on the stack only with CAP_PERFMON. */
struct scratch {
	union {
		struct headers4 h4;
		struct headers6 h6;
		__u64 words[8];
	};
	struct listener_key key;
	struct flow flow;
	__u8 question[2 * MAX_NAME + 16]; /* name, type, class, OPT */
	__u8 body[2 * MAX_BODY + 16];
};

struct {
	UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	TYPE(key, __u32);
	TYPE(value, struct scratch);
	UINT(max_entries, 1);
} scratches SEC(".maps");

/* All that is known of a query, on the stack. */
struct query {
	__u64 name[MAX_NAME / 8];
	struct scratch *scratch;
	const __u8 *tail;   /* type, class, OPT in scratch */
	__u64 start;        /* offset of the DNS header in the packet */
	__u64 name_len;
	__u64 payload;      /* bytes of the DNS message */
	__u64 listener;
	__u64 limit;        /* of the size that a client may advertise */
	__u64 edns;         /* 0 or OPT */
};

/* A key on the stack is written as a whole word, of which the map reads the first half. */
#define KEY(name, value) __u64 name = (value)

INLINE int count(__u32 index)
{
	KEY(at, index);
	__u64 *n = bpf_map_lookup_elem(&counts, &at);

	if (n)
		*n += 1;
	return TC_ACT_UNSPEC;
}

INLINE __u64 lower(__u64 w)
{
	/* In each byte: 0x80 where the byte is 'A' to 'Z'. Length bytes are at
	 * most 63, so a name is lowered as a whole. */
	__u64 low = w & 0x7f7f7f7f7f7f7f7full;
	__u64 upper = (low + 0x3f3f3f3f3f3f3f3full) & ~(low + 0x2525252525252525ull) & ~w & 0x8080808080808080ull;

	return w | upper >> 2;
}

INLINE __u64 mix(__u64 h, __u64 w)
{
	h = (h ^ w) * 0x9e3779b97f4a7c15ull;
	return h ^ h >> 29;
}

INLINE __u32 fold(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

INLINE __u16 flip(__u32 sum) { return swap16((__u16)sum); }

/* lookup finds the record of the question, or returns its absence. */
INLINE struct record *lookup(struct query *q, struct control *c, __u64 *first)
{
	__u16 type = *(const __u16 *)q->tail;
	__u8 key = q->listener << 1;
	__u32 words = (q->name_len + 7) / 8;
	__u64 h = c->seed ^ q->name_len;
	__u32 i;
	KEY(at, 0);

	if (q->edns)
		key |= q->tail[4 + 7] >> 7; /* the first byte of the EDNS flags */
#pragma unroll
	for (i = 0; i < MAX_NAME / 8; i++) {
		__u32 n = words;

		barrier(n);
		if (i >= n)
			break;
		__u64 w = *(__u64 *)(q->scratch->question + 8 * i);
		if (i + 1 == n) /* what is behind the name is not hashed */
			w &= ~0ull >> (-q->name_len & 7) * 8;
		w = lower(w);
		q->name[i] = w;
		h = mix(h, w);
	}
	h = mix(h, (__u64)type << 8 | key);
	h *= 0xff51afd7ed558ccdull;
	h ^= h >> 32;

	__u32 tag = (__u32)(h >> 40) | 1;
	KEY(where, h & c->bucket_mask);

	struct bucket *b = bpf_map_lookup_elem(&buckets, &where);
	if (!b)
		return 0;
#pragma unroll
	for (i = 0; i < WAYS; i++) {
		__u64 slot = *(volatile __u64 *)&b->slot[i];
		if ((__u32)(slot >> 32) == tag)
			at = (__u32)slot;
	}
	if (!at) {
		where = ((__u32)where ^ (__u32)(tag * 0x5bd1e995u)) & c->bucket_mask;
		b = bpf_map_lookup_elem(&buckets, &where);
		if (!b)
			return 0;
#pragma unroll
		for (i = 0; i < WAYS; i++) {
			__u64 slot = *(volatile __u64 *)&b->slot[i];
			if ((__u32)(slot >> 32) == tag)
				at = (__u32)slot;
		}
	}
	if (!at)
		return 0;
	struct record *r = bpf_map_lookup_elem(&units, &at);
	if (!r || r->name_len != q->name_len || r->type != type || r->key != key)
		return 0;

	__u64 differ = (r->name[0] ^ q->name[0]) | (r->name[1] ^ q->name[1]) | (r->name[2] ^ q->name[2]);
	if (q->name_len > 24) {
		KEY(next, at + 1);
		struct more *m = bpf_map_lookup_elem(&units, &next);
		if (!m)
			return 0;
#pragma unroll
		for (i = 0; i < 5; i++)
			differ |= m->name[i] ^ q->name[3 + i];
	}
	if (q->name_len > 64) {
		KEY(next, at + 2);
		struct unit *u = bpf_map_lookup_elem(&units, &next);
		if (!u)
			return 0;
#pragma unroll
		for (i = 0; i < 8; i++)
			differ |= u->word[i] ^ q->name[8 + i];
	}
	if (differ)
		return 0;
	*first = at;
	return r;
}

/* body writes the record's body with its TTLs behind the question, then the OPT record. */
INLINE int body(struct __sk_buff *skb, struct query *q, struct record *r, __u64 first, __u32 ttl)
{
	__u64 at = first + 2 + (q->name_len > 64);
	__u32 len = r->body_len & (2 * MAX_BODY - 1);
	__u8 *to = q->scratch->body;
	__u32 i;
	KEY(next, 0);

	ttl = swap32(ttl);
#pragma unroll
	for (i = 0; i < MAX_BODY / UNIT; i++) {
		__u32 n = len;

		barrier(n);
		if (i * UNIT >= n)
			break;
		next = at + i;
		struct unit *u = bpf_map_lookup_elem(&units, &next);
		if (!u)
			return -1;
		*(struct unit *)(to + i * UNIT) = *u;
	}
	next = first + 1;
	struct more *m = bpf_map_lookup_elem(&units, &next);
	if (!m)
		return -1;
#pragma unroll
	for (i = 0; i < MAX_TTLS; i++) {
		__u32 n = r->ttls;

		barrier(n);
		if (i >= n)
			break;
		*(__u32 *)(to + (m->ttl[i] & (MAX_BODY - 1))) = ttl;
	}
	if (q->edns) {
		__u8 *opt = to + len;

		*(__u64 *)opt = *(const __u64 *)(q->tail + 4);
		*(__u16 *)(opt + 8) = *(const __u16 *)(q->tail + 12);
		opt[10] = q->tail[14];
		len += OPT;
	}
	if (!len)
		return 0;
	len -= 1;
	barrier(len);
	len = (len & (2 * MAX_BODY - 1)) + 1;
	return bpf_skb_store_bytes(skb, q->start + q->payload - q->edns, to, len, 0);
}

/* reply_sum returns how the sum of the UDP payload changes, of which sum is the header's
 * part. */
INLINE __u32 reply_sum(struct query *q, struct record *r, __u64 sum, __u32 ttl)
{
	__u32 opt = 0, odd_start = q->name_len & 1;
	__u32 i;

	__u32 even = swap16(ttl >> 16) + swap16(ttl & 0xffff);
	even = fold(even);
	__u32 body = r->sum + (r->ttls - r->odd_ttls) * even + r->odd_ttls * (__u32)flip(even);
	body = fold(body);
	sum += odd_start ? flip(body) : body;
	if (q->edns && r->body_len & 1) {
		/* The OPT record moves by an odd number of bytes. */
		__u16 w[6];
		__builtin_memcpy(w, q->tail + 4, 10);
		w[5] = q->tail[14];
#pragma unroll
		for (i = 0; i < 6; i++)
			opt += w[i];
		opt = fold(opt);
		if (odd_start)
			opt = flip(opt);
		sum += (__u64)flip(opt) + (__u16)~opt;
	}
	return fold(sum);
}

/* finish rewrites the packet. From here on a failure would leave half a reply:
 * the packet is dropped then, and the client asks again. */
INLINE int finish(struct __sk_buff *skb, struct query *q, struct record *r, __u64 first, __u32 ttl,
		  __u32 sum, void *headers, __u32 headers_len, __u32 udp_at, __u16 udp_was, __u16 udp_is,
		  struct flow *flow, __u32 variant)
{
	if (bpf_skb_store_bytes(skb, 0, headers, headers_len, 0) || body(skb, q, r, first, ttl))
		goto failed;

	/* A sum of zero in the packet means that there is none, over IPv4. */
	__u32 check = udp_at + __builtin_offsetof(struct udphdr, check);
	sum = fold((__u64)sum + udp_is + (__u16)~udp_was);
	if (bpf_l4_csum_replace(skb, check, 0, sum, BPF_F_MARK_MANGLED_0) ||
	    bpf_l4_csum_replace(skb, check, udp_was, udp_is, BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0 | 2))
		goto failed;

	r->hits++; /* for eviction and prefetch: a lost one does no harm */
	if (q->edns)
		variant |= WITH_EDNS;
	count(FIRST_CLASS + (r->class & (CLASSES - 1)) * VARIANTS + variant);
	/* It wakes the reader only where that has read everything before. */
	if (bpf_ringbuf_output(&flows, flow, sizeof(*flow), 0))
		count(UNREPORTED);
	return bpf_redirect(skb->ifindex, 0);
failed:
	count(FAILED);
	return TC_ACT_SHOT;
}

/* question reads the rest of the message after the headers, and says why it is not
 * for us. */
INLINE int question(struct __sk_buff *skb, struct query *q, const __u16 *dns)
{
	/* RD is set and nothing else but AD: what a stub resolver asks. */
	if ((dns[1] & ~swap16(0x0020)) != swap16(0x0100) || dns[2] != swap16(1) || dns[3] || dns[4] || dns[5] & ~swap16(1))
		return HEADER;
	q->edns = dns[5] ? OPT : 0;

	__u32 n = q->payload - DNS_HEADER - 4 - q->edns;
	if (n < 1 || n > MAX_NAME)
		return NAME;
	q->name_len = n;
	__u32 len = n + 3 + q->edns;
	barrier(len);
	len = (len & (2 * MAX_NAME - 1)) + 1;
	if (bpf_skb_load_bytes(skb, q->start + DNS_HEADER, q->scratch->question, len))
		return FAILED;
	barrier(n);
	q->tail = q->scratch->question + (n & (2 * MAX_NAME - 1));
	if (q->edns) {
		const __u8 *opt = q->tail + 4;
		/* Root name, type 41, no extended RCODE, version 0, no low flags and
		 * no options: the reply has the same record. */
		if (opt[0] || opt[1] || opt[2] != 41 || opt[5] || opt[6] || opt[8] || opt[9] || opt[10])
			return EDNS;
	}
#pragma unroll
	for (int i = 0; i < MAX_NAME / 8; i++)
		q->name[i] = 0;
	if (q->tail[2] || q->tail[3] != 1)
		return CLASS;
	return 0;
}

/* find returns the record that answers, or null after it has counted why not. */
INLINE struct record *find(struct __sk_buff *skb, struct control *c, struct query *q, const __u16 *dns,
			   __u64 *first, __u32 *ttl)
{
	int why = question(skb, q, dns);

	if (why) {
		count(why);
		return 0;
	}
	struct record *r = lookup(q, c, first);
	if (!r) {
		count(MISS);
		return 0;
	}
	__u64 now = bpf_ktime_get_ns(); /* it takes a tenth of a miss, which has no need of it */
	if (now >= *(volatile __u64 *)&c->open_until[q->listener & (LISTENERS - 1)]) {
		count(CLOSED);
		return 0;
	}
	__u64 passed = (now - r->stored) / 1000000000;
	if (passed >= r->serve) {
		count(STALE);
		return 0;
	}
	*ttl = r->ttl - (__u32)passed;

	__u32 size = MIN_SIZE;
	if (q->edns) {
		__u32 advertised = q->tail[7] << 8 | q->tail[8];
		if (advertised > q->limit) {
			count(EDNS);
			return 0;
		}
		if (advertised > size)
			size = advertised;
	}
	if (q->payload + r->body_len > size) {
		count(LARGE);
		return 0;
	}
	return r;
}

/* reply_header turns the header of the query into that of the reply, and returns how its sum
 * changes. */
INLINE __u64 reply_header(struct query *q, struct record *r, __u16 *dns)
{
	__u64 sum = 0;
	int i;

#pragma unroll
	for (i = 0; i < 6; i++)
		sum += (__u16)~dns[i];
	__u16 flags = r->flags | swap16(0x8100);

	/* AD is for those who understand it (RFC 6840 section 5.8). */
	if (!(dns[1] & swap16(0x0020)) && !(r->key & 1))
		flags &= ~swap16(0x0020);
	dns[1] = flags;
	dns[3] = r->counts[0];
	dns[4] = r->counts[1];
	dns[5] = r->counts[2];
	if (q->edns)
		dns[5] = swap16(swap16(r->counts[2]) + 1);
#pragma unroll
	for (i = 0; i < 6; i++)
		sum += dns[i];
	return sum;
}

INLINE int listener(struct query *q, struct listener_key *key)
{
	struct listener *l = bpf_map_lookup_elem(&listeners, key);

	if (!l)
		return 0;
	q->listener = l->number;
	q->limit = l->size;
	return 1;
}

/* copy takes headers, a multiple of two bytes, from the packet. */
INLINE void copy(void *to, const void *from, __u32 len)
{
	__u32 i;

#pragma unroll
	for (i = 0; i + 8 <= len; i += 8)
		*(__u64 *)(to + i) = *(const __u64 *)(from + i);
#pragma unroll
	for (; i + 2 <= len; i += 2)
		*(__u16 *)(to + i) = *(const __u16 *)(from + i);
}

/* ours tells whether the frame is to this node. The node drops others, and its bridge
 * forwards them to other hosts. */
INLINE int ours(struct __sk_buff *skb, struct ethhdr *eth)
{
	int i, differ = 0;
	KEY(port, skb->ifindex);

	if (skb->pkt_type == PACKET_HOST)
		return 1;
	struct bridge *b = bpf_map_lookup_elem(&bridges, &port);
	if (!b)
		return 0;
#pragma unroll
	for (i = 0; i < ETH_ALEN; i++)
		differ |= b->mac[i] ^ eth->h_dest[i];
	return !differ;
}

INLINE void swap_eth(struct ethhdr *eth)
{
	int i;

#pragma unroll
	for (i = 0; i < ETH_ALEN; i++) {
		__u8 b = eth->h_dest[i];
		eth->h_dest[i] = eth->h_source[i];
		eth->h_source[i] = b;
	}
}

INLINE int ipv4(struct __sk_buff *skb, struct control *c, const void *data, const void *end)
{
	const struct headers4 *packet = data;
	struct query q;
	struct record *r;
	__u64 first = 0;
	__u32 ttl = 0;

	if ((void *)(packet + 1) <= end && (packet->ip.protocol != IPPROTO_UDP || !(c->ports >> (swap16(packet->udp.dest) & 63) & 1)))
		return TC_ACT_UNSPEC;
	KEY(zero, 0);
	struct scratch *s = bpf_map_lookup_elem(&scratches, &zero);
	if (!s)
		return TC_ACT_UNSPEC;
	struct headers4 *h = &s->h4;
	struct listener_key *key = &s->key;
	struct flow *flow = &s->flow;
	q.scratch = s;
	if ((void *)(packet + 1) <= end)
		copy(h, data, sizeof(*h));
	else if (bpf_skb_load_bytes(skb, 0, h, sizeof(*h)) || h->ip.protocol != IPPROTO_UDP) /* it is in pages */
		return TC_ACT_UNSPEC;
	__builtin_memset(key, 0, sizeof(*key));
	key->addr[10] = key->addr[11] = 0xff;
	__builtin_memcpy(key->addr + 12, &h->ip.daddr, 4);
	key->port = h->udp.dest;
	if (!listener(&q, key))
		return TC_ACT_UNSPEC;
	if (h->ip.version != 4 || h->ip.ihl != 5 || h->ip.frag_off & ~swap16(0x4000) || skb->gso_segs > 1 || !ours(skb, &h->eth))
		return count(FRAGMENT);
	__u32 payload = swap16(h->udp.len) - sizeof(h->udp);
	if (payload > MAX_NAME + 4 + OPT + DNS_HEADER || swap16(h->ip.tot_len) != payload + sizeof(h->ip) + sizeof(h->udp) || skb->len < sizeof(*h) - DNS_HEADER + payload)
		return count(NAME);
	q.payload = payload;
	q.start = sizeof(*h) - DNS_HEADER;
	r = find(skb, c, &q, h->dns, &first, &ttl);
	if (!r)
		return TC_ACT_UNSPEC;

	__u32 sum = reply_sum(&q, r, reply_header(&q, r, h->dns), ttl);
	__u16 ip_was = h->ip.tot_len, udp_was = h->udp.len;
	__u16 body_len = r->body_len & 1023;

	__builtin_memcpy(flow->client, key->addr, 12);
	__builtin_memcpy(flow->client + 12, &h->ip.saddr, 4);
	__builtin_memcpy(flow->server, key->addr, 16);
	flow->client_port = h->udp.source;
	flow->server_port = h->udp.dest;

	swap_eth(&h->eth);
	__u32 addr = h->ip.saddr;
	h->ip.saddr = h->ip.daddr;
	h->ip.daddr = addr;
	h->udp.dest = h->udp.source;
	h->udp.source = flow->server_port;
	h->ip.tot_len = swap16(swap16(ip_was) + body_len);
	h->udp.len = swap16(swap16(udp_was) + body_len);
	/* The IP header's sum follows its length (RFC 1624). */
	h->ip.check = ~fold((__u64)(__u16)~h->ip.check + (__u16)~ip_was + h->ip.tot_len);
	if (bpf_skb_change_tail(skb, q.start + payload + body_len, 0))
		return count(FAILED);
	return finish(skb, &q, r, first, ttl, sum, h, sizeof(*h), sizeof(h->eth) + sizeof(h->ip), udp_was, h->udp.len, flow, 0);
}

INLINE int ipv6(struct __sk_buff *skb, struct control *c, const void *data, const void *end)
{
	const struct headers6 *packet = data;
	struct query q;
	struct record *r;
	__u64 first = 0;
	__u32 ttl = 0;

	if ((void *)(packet + 1) <= end && (packet->ip.nexthdr != IPPROTO_UDP || !(c->ports >> (swap16(packet->udp.dest) & 63) & 1)))
		return TC_ACT_UNSPEC;
	KEY(zero, 0);
	struct scratch *s = bpf_map_lookup_elem(&scratches, &zero);
	if (!s)
		return TC_ACT_UNSPEC;
	struct headers6 *h = &s->h6;
	struct listener_key *key = &s->key;
	struct flow *flow = &s->flow;
	q.scratch = s;
	if ((void *)(packet + 1) <= end)
		copy(h, data, sizeof(*h));
	else if (bpf_skb_load_bytes(skb, 0, h, sizeof(*h)) || h->ip.nexthdr != IPPROTO_UDP) /* it is in pages */
		return TC_ACT_UNSPEC;
	__builtin_memset(key, 0, sizeof(*key));
	__builtin_memcpy(key->addr, &h->ip.daddr, 16);
	key->port = h->udp.dest;
	if (!listener(&q, key))
		return TC_ACT_UNSPEC;
	__u32 payload = swap16(h->udp.len) - sizeof(h->udp);
	/* Without a sum the node drops it (RFC 8200 section 8.1). */
	if (h->ip.version != 6 || !h->udp.check || skb->gso_segs > 1 || !ours(skb, &h->eth))
		return count(FRAGMENT);
	if (payload > MAX_NAME + 4 + OPT + DNS_HEADER || swap16(h->ip.payload_len) != payload + sizeof(h->udp) || skb->len < sizeof(*h) - DNS_HEADER + payload)
		return count(NAME);
	q.payload = payload;
	q.start = sizeof(*h) - DNS_HEADER;
	r = find(skb, c, &q, h->dns, &first, &ttl);
	if (!r)
		return TC_ACT_UNSPEC;

	__u32 sum = reply_sum(&q, r, reply_header(&q, r, h->dns), ttl);
	__u16 udp_was = h->udp.len;
	__u16 body_len = r->body_len & 1023;

	__builtin_memcpy(flow->client, &h->ip.saddr, 16);
	__builtin_memcpy(flow->server, &h->ip.daddr, 16);
	flow->client_port = h->udp.source;
	flow->server_port = h->udp.dest;

	swap_eth(&h->eth);
	__builtin_memcpy(&h->ip.saddr, flow->server, 16);
	__builtin_memcpy(&h->ip.daddr, flow->client, 16);
	h->udp.dest = h->udp.source;
	h->udp.source = flow->server_port;
	h->ip.payload_len = swap16(swap16(h->ip.payload_len) + body_len);
	h->udp.len = swap16(swap16(udp_was) + body_len);
	if (bpf_skb_change_tail(skb, q.start + payload + body_len, 0))
		return count(FAILED);
	return finish(skb, &q, r, first, ttl, sum, h, sizeof(*h), sizeof(h->eth) + sizeof(h->ip), udp_was, h->udp.len, flow, OVER_IPV6);
}

SEC("tc")
int trackless_answer(struct __sk_buff *skb)
{
	const void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	KEY(zero, 0);
	struct control *c = bpf_map_lookup_elem(&control, &zero);

	if (!c || skb->vlan_present)
		return TC_ACT_UNSPEC;
	if (skb->protocol == swap16(ETH_P_IP))
		return ipv4(skb, c, data, end);
	if (skb->protocol == swap16(ETH_P_IPV6))
		return ipv6(skb, c, data, end);
	return TC_ACT_UNSPEC;
}

char program_license[] SEC("license") = "Apache-2.0";
