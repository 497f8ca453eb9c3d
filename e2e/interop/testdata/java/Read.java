import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

/** Prints what the JDK's HttpClient gets, after the time in milliseconds at which it came. */
public class Read {
	static String lastId = "";

	public static void main(String[] args) throws Exception {
		var request = HttpRequest.newBuilder(URI.create(args[0])).build();
		var answer = HttpClient.newHttpClient().send(request, BodyHandlers.ofLines());
		if (answer.statusCode() != 200) throw new Exception("status " + answer.statusCode());
		answer.body().forEach(Read::showLine);
		show("end");
	}

	static void showLine(String line) {
		var field = line.split(": ?", 2);
		if (field.length < 2) return;
		switch (field[0]) {
			case "id" -> lastId = field[1];
			case "data" -> show("event " + lastId + " " + field[1].length());
			case "" -> show("heartbeat");
		}
	}

	static void show(String what) {
		System.out.println(System.currentTimeMillis() + " " + what);
	}
}
