import io.netty.channel.nio.NioEventLoopGroup;
import io.netty.channel.socket.nio.NioDatagramChannel;
import io.netty.resolver.dns.DnsNameResolver;
import io.netty.resolver.dns.DnsNameResolverBuilder;
import java.net.InetAddress;
import java.net.UnknownHostException;
import java.util.concurrent.ExecutionException;

/** Looks up names with Netty, which sends all queries from one socket, and prints their addresses. */
public class Netty {
    public static void main(String[] names) throws Exception {
        NioEventLoopGroup group = new NioEventLoopGroup(1);
        DnsNameResolver resolver = new DnsNameResolverBuilder(group.next()).channelType(NioDatagramChannel.class).build();
        for (String name : names) {
            StringBuilder line = new StringBuilder(name);
            try {
                for (InetAddress address : resolver.resolveAll(name).get()) {
                    line.append(' ').append(address.getHostAddress());
                }
            } catch (ExecutionException e) {
                line.append(e.getCause() instanceof UnknownHostException ? " none" : " error:" + e.getCause());
            }
            System.out.println(line);
        }
        group.shutdownGracefully(0, 0, java.util.concurrent.TimeUnit.SECONDS);
    }
}
