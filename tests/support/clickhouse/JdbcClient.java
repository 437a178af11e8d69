import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/**
 * Somebody's program that knows ClickHouse through JDBC alone, with the driver's defaults. Each line of its input is a request: URL, user,
 * password, what to do and its arguments, URL-encoded and separated by blanks. Each line of its output is the answer, as JSON.
 */
public class JdbcClient {
    private static final Map<String, Connection> connections = new HashMap<>();

    public static void main(String[] arguments) throws Exception {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        PrintStream out = new PrintStream(new FileOutputStream(FileDescriptor.out), true, StandardCharsets.UTF_8);
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            String[] words = Stream.of(line.split(" ", -1)).map(w -> URLDecoder.decode(w, StandardCharsets.UTF_8)).toArray(String[]::new);
            out.println(answer(words));
        }
    }

    private static String answer(String[] words) {
        try {
            return done(connection(words[0], words[1], words[2]), words[3], List.of(words).subList(4, words.length));
        } catch (SQLException e) {
            return "{\"code\":" + e.getErrorCode() + ",\"error\":" + json(e.getMessage()) + "}";
        }
    }

    /** One for each user, as long as this program runs: an error must not spoil it for what follows. */
    private static Connection connection(String url, String user, String password) throws SQLException {
        String key = user + " " + password;
        if (!connections.containsKey(key)) {
            connections.put(key, DriverManager.getConnection(url, user, password));
        }
        return connections.get(key);
    }

    private static String done(Connection connection, String what, List<String> words) throws SQLException {
        return switch (what) {
            case "schemas" -> rows(connection.getMetaData().getSchemas());
            case "tables" -> rows(connection.getMetaData().getTables(null, words.get(0), "%", null));
            case "columns" -> rows(connection.getMetaData().getColumns(null, words.get(0), words.get(1), "%"));
            case "keys" -> rows(connection.getMetaData().getPrimaryKeys(null, words.get(0), words.get(1)));
            case "types" -> rows(connection.getMetaData().getTypeInfo());
            case "query" -> {
                try (Statement statement = connection.createStatement()) {
                    yield rows(statement.executeQuery(words.get(0)));
                }
            }
            case "first" -> {
                try (Statement statement = connection.createStatement()) {
                    statement.setMaxRows(Integer.parseInt(words.get(0)));
                    yield rows(statement.executeQuery(words.get(1)));
                }
            }
            case "prepared" -> {
                try (PreparedStatement statement = connection.prepareStatement(words.get(0))) {
                    statement.setLong(1, Long.parseLong(words.get(1)));
                    statement.setString(2, words.get(2));
                    yield rows(statement.executeQuery());
                }
            }
            case "batch" -> {
                try (PreparedStatement statement = connection.prepareStatement(words.get(0))) {
                    for (String value : words.subList(1, words.size())) {
                        statement.setLong(1, value.length());
                        statement.setString(2, value);
                        statement.addBatch();
                    }
                    yield "{\"count\":" + statement.executeBatch().length + "}";
                }
            }
            case "update" -> {
                try (Statement statement = connection.createStatement()) {
                    yield "{\"count\":" + statement.executeUpdate(words.get(0)) + "}";
                }
            }
            case "sum" -> {
                try (Statement statement = connection.createStatement(); ResultSet result = statement.executeQuery(words.get(0))) {
                    long count = 0, sum = 0;
                    for (; result.next(); count++) {
                        sum += result.getLong(1);
                    }
                    yield "{\"count\":" + count + ",\"sum\":" + sum + "}";
                }
            }
            default -> throw new IllegalArgumentException(what);
        };
    }

    private static String rows(ResultSet result) throws SQLException {
        ResultSetMetaData about = result.getMetaData();
        StringBuilder rows = new StringBuilder();
        while (result.next()) {
            rows.append(rows.isEmpty() ? "{" : ",{");
            for (int column = 1; column <= about.getColumnCount(); column++) {
                Object value = result.getObject(column);
                String pair = json(about.getColumnLabel(column)) + ":" + (value == null ? "null" : json(value.toString()));
                rows.append(column == 1 ? pair : "," + pair);
            }
            rows.append("}");
        }
        return "{\"rows\":[" + rows + "]}";
    }

    private static String json(String text) {
        return text.chars().mapToObj(c -> c < 32 || c > 126 || c == '"' || c == '\\' ? String.format("\\u%04x", c) : String.valueOf((char) c))
                .collect(Collectors.joining("", "\"", "\""));
    }
}
