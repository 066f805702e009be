package devtools

// german has the German texts of the page, by the English ones.
var german = map[string]string{
	"Inspector":                 "Inspektor",
	"Inspector for development": "Inspektor für die Entwicklung",
	"Open the app":              "App öffnen",

	// Results of actions
	"The access token counts as expired. The next call of an API refreshes it.": "Das Access-Token gilt als " +
		"abgelaufen. Der nächste Aufruf einer API erneuert es.",
	"The session has ended. Open tabs of the app learn of it at once.": "Die Sitzung ist beendet. Offene Tabs der " +
		"App erfahren es sofort.",
	"That did not work: this browser has no session, or the store is off.": "Das hat nicht geklappt: Dieser " +
		"Browser hat keine Sitzung, oder der Speicher ist aus.",
	"The sign-in was refused: %s.": "Die Anmeldung wurde abgelehnt: %s.",

	// Session
	"Session <small>of this browser</small>":        "Sitzung <small>dieses Browsers</small>",
	"The session cannot be read: the store is off.": "Die Sitzung ist nicht lesbar: Der Speicher ist aus.",
	"This browser has no session.":                  "Dieser Browser hat keine Sitzung.",
	"Sign in":                                       "Anmelden",
	"Expire the access token":                       "Access-Token ablaufen lassen",
	"End the session":                               "Sitzung beenden",
	"Access token":                                  "Access-Token",
	"Access token for %s":                           "Access-Token für %s",
	"ID token":                                      "ID-Token",
	"expired":                                       "abgelaufen",
	"good for %s":                                   "gültig noch %s",
	"Header":                                        "Kopf",
	"Claims":                                        "Claims",
	"Claims of the user":                            "Claims des Benutzers",
	"This token is no JWT, so it says nothing.": "Dieses Token ist kein JWT und sagt daher nichts aus.",
	"Its scope is %s.":                          "Sein Scope ist %s.",
	"What the app sees of the user":             "Was die App vom Benutzer sieht",
	"<code>user</code> of the session endpoint": "<code>user</code> des Sitzungs-Endpunkts",
	"The browser has none of these tokens. Signatures are not shown.": "Der Browser hat keines dieser Token. " +
		"Signaturen werden nicht gezeigt.",
	"Signed in as <strong>%s</strong> since %s. It ends in %s without activity, and in %s at the latest.": "" +
		"Angemeldet als <strong>%s</strong> seit %s. Endet in %s ohne Aktivität und in %s auf jeden Fall.",

	// Outages
	"Outages":                 "Ausfälle",
	"Switch the provider on":  "Provider einschalten",
	"Switch the provider off": "Provider ausschalten",
	"Switch the store on":     "Speicher einschalten",
	"Switch the store off":    "Speicher ausschalten",
	`<strong class="bad">The provider is off.</strong> Sign-ins and refreshes fail. No session ends.`: "" +
		`<strong class="bad">Der Provider ist aus.</strong> Anmeldungen und Erneuerungen schlagen fehl. Keine ` +
		"Sitzung endet.",
	"Without the provider, sign-ins and refreshes fail.": "Ohne den Provider schlagen Anmeldungen und " +
		"Erneuerungen fehl.",
	`<strong class="bad">The store is off.</strong> Calls get 503 store_unavailable. No session ends.`: "" +
		`<strong class="bad">Der Speicher ist aus.</strong> Aufrufe erhalten 503 store_unavailable. Keine ` +
		"Sitzung endet.",
	"Without the store, calls get 503.": "Ohne den Speicher erhalten Aufrufe 503.",

	// Refreshes
	"Refreshes <small>of all sessions, the latest first</small>": "Erneuerungen <small>aller Sitzungen, die " +
		"letzte zuerst</small>",
	"new tokens":            "neue Token",
	"the session ended: %s": "die Sitzung endete: %s",
	"None yet. A token is refreshed when an API is called and the token is about to expire.": "Noch keine. Ein Token " +
		"wird erneuert, wenn eine API aufgerufen wird und das Token bald abläuft.",

	// Refused requests
	"Refused as cross-site": "Abgelehnt, weil von einer anderen Website",
	"None.":                 "Keine.",
	"A script has to send the header <code>X-CSRF: 1</code>: use <code>fetch</code> of the browser client, " +
		"or set the header. EventSource, WebSocket, images and downloads cannot have it, and pass if a page of " +
		"this origin makes them with GET. Pages of other origins, other ports included, are always refused.": "" +
		"Ein Skript muss die Kopfzeile <code>X-CSRF: 1</code> senden: Verwenden Sie <code>fetch</code> des " +
		"Browser-Clients, oder setzen Sie die Kopfzeile. EventSource, WebSocket, Bilder und Downloads können sie " +
		"nicht haben. Sie sind erlaubt, wenn eine Seite dieser Website sie mit GET abruft. Seiten anderer " +
		"Herkunft, auch von anderen Ports, werden immer abgelehnt.",

	// Violations of the policy
	"reported by this browser":            "gemeldet von diesem Browser",
	"was blocked":                         "wurde blockiert",
	"would be blocked by cloakroom serve": "würde von cloakroom serve blockiert",
	"on <code>%s</code>":                  "auf <code>%s</code>",
	"from <code>%s</code>":                "durch <code>%s</code>",
	"Setting":                             "Einstellung",
	"No violation. The policy of production is reported here, and blocks nothing of a development server.": "Kein " +
		"Verstoß. Hier erscheint, was in der Produktion verboten ist. Bei einem Entwicklungsserver wird nichts " +
		"blockiert.",
	"An attribute such as onclick or onload has a script. Set the handler with addEventListener, or let the " +
		"framework set it.": "Ein Attribut wie onclick oder onload enthält ein Skript. Setzen Sie den Handler mit " +
		"addEventListener, oder überlassen Sie es dem Framework.",
	"The page has an inline script. Development servers insert some. In a build, inline scripts in index.html are " +
		"allowed by their hash.": "Die Seite enthält ein Inline-Skript. Entwicklungsserver fügen welche " +
		"ein. In einem " +
		"Build sind Inline-Skripte in index.html durch ihren Hash erlaubt.",
	"The page compiles WebAssembly.": "Die Seite übersetzt WebAssembly.",
	"A script calls eval or new Function. Development builds often do (webpack: set devtool to source-map). A " +
		"production build must not.": "Ein Skript ruft eval oder new Function auf. Builds für die " +
		"Entwicklung tun das " +
		"oft (webpack: setzen Sie devtool auf source-map). Ein Build für die Produktion darf es nicht.",
	"The page has an inline style that the policy does not allow.": "Die Seite enthält einen Inline-Stil, den die " +
		"Richtlinie nicht erlaubt.",
	"The page loads a %s: URL.":                 "Die Seite lädt eine URL mit %s:.",
	"The policy does not allow it.":             "Die Richtlinie erlaubt es nicht.",
	"Cloakroom sets this directive for safety.": "Cloakroom setzt diese Direktive zur Sicherheit.",
	"The page loads something of another origin. Copy the file into the app, or allow the origin.": "Die Seite lädt " +
		"etwas von einer anderen Website. Kopieren Sie die Datei in die App, oder erlauben Sie die Website.",
	"The page calls another origin. If it is your API, make it a route: then it gets the token, and needs no CORS. " +
		"Otherwise allow the origin.": "Die Seite ruft eine andere Website auf. Ist es Ihre API, machen " +
		"Sie eine Route " +
		"daraus: Dann erhält sie das Token und braucht kein CORS. Sonst erlauben Sie die Website.",
	"It is a WebSocket to another server on this machine. If it is the development server's connection for hot " +
		"reload, ignore this. With webpack, <code>devServer.client.webSocketURL: " +
		"\"auto://0.0.0.0:0/ws\"</code> leads " +
		"it through this origin. If it is an API, call it by a path of this origin: <code>--api " +
		"/api=%s://%s</code>": "" +
		"Es ist ein WebSocket zu einem anderen Server auf diesem Rechner. Ist es die Verbindung des " +
		"Entwicklungsservers für Hot Reload, beachten Sie es nicht. Mit webpack führt " +
		"<code>devServer.client.webSocketURL: \"auto://0.0.0.0:0/ws\"</code> ihn über diese Website. Ist " +
		"es eine API, " +
		"rufen Sie sie unter einem Pfad dieser Website auf: <code>--api /api=%s://%s</code>",
	"It is another server on this machine. Call it by a path of this origin: <code>--api /api=%s://%s</code>": "Es " +
		"ist ein anderer Server auf diesem Rechner. Rufen Sie ihn unter einem Pfad dieser Website auf: " +
		"<code>--api /api=%s://%s</code>",

	// Calls of APIs
	"Calls of APIs":        "Aufrufe von APIs",
	"waited for a refresh": "wartete auf eine Erneuerung",
	"None yet.":            "Noch keine.",
	"There are no routes. Start <code>cloakroom dev</code> with <code>--api /api=http://localhost:3000</code>.": "Es " +
		"gibt keine Routen. Starten Sie <code>cloakroom dev</code> mit <code>--api /api=http://localhost:3000</code>.",
	"Routes":   "Routen",
	"Path":     "Pfad",
	"Upstream": "Upstream",
	"Token":    "Token",
	"An API verifies access tokens with issuer <code>%s</code> and audience <code>%s</code>.": "Eine API prüft " +
		"Access-Token mit dem Issuer <code>%s</code> und der Audience <code>%s</code>.",

	// Sign in as
	"Sign in as":                         "Anmelden als",
	"Or another user, by claims in JSON": "Oder ein anderer Benutzer, mit Claims als JSON",
	"Sign in with these claims":          "Mit diesen Claims anmelden",
	"No picker is shown. A session of this browser is replaced.": "Es erscheint keine Auswahl. Eine Sitzung dieses " +
		"Browsers wird ersetzt.",
}
