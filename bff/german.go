package bff

// german has the German texts of pages, by the English ones. The texts of
// problem.Catalogue and of page.html must all be in it.
var german = map[string]string{
	// Parts of every page
	"Back to the app":          "Zurück zur App",
	"If you ask for help, say": "Wenn Sie um Hilfe bitten, nennen Sie",
	"Sign in":                  "Anmelden",
	"Try again":                "Erneut versuchen",
	"What now":                 "Wie es weitergeht",
	"request":                  "Anfrage",

	// Signed out
	"You are signed out": "Sie sind abgemeldet",
	"Close the browser if other people use this device.": "Schließen " +
		"Sie den Browser, wenn andere dieses Gerät benutzen.",

	// Of the sign-in
	"A stronger or newer sign-in is needed": "Eine stärkere oder neuere Anmeldung ist nötig",
	"A stronger sign-in is needed":          "Eine stärkere Anmeldung ist nötig",
	"The sign-in service did not confirm the requested way of signing in. Nothing has changed.": "Der " +
		"Anmeldedienst hat die verlangte Art der Anmeldung nicht bestätigt. Es hat sich nichts geändert.",
	"Not signed in":       "Nicht angemeldet",
	"You did not sign in": "Sie haben sich nicht angemeldet",
	"The sign-in was cancelled, or this account may not use the app. Nothing has changed.": "Die Anmeldung " +
		"wurde abgebrochen, oder dieses Konto darf die App nicht benutzen. Es hat sich nichts geändert.",
	"The sign-in link is not valid": "Der Link zur Anmeldung ist ungültig",
	"One of its parameters has an unknown value. Start again from the app.": "Einer seiner Parameter hat " +
		"einen unbekannten Wert. Beginnen Sie noch einmal in der App.",
	"This sign-in cannot be completed": "Diese Anmeldung kann nicht abgeschlossen werden",
	"It was started in another browser, too long ago, or not at all; or the browser refuses cookies. " +
		"Nothing has changed. Start again from here.": "Sie wurde in einem anderen Browser, vor zu langer " +
		"Zeit oder gar nicht begonnen, oder der Browser lehnt Cookies ab. Es hat sich nichts geändert. " +
		"Beginnen Sie hier noch einmal.",
	"The sign-in could not be verified": "Die Anmeldung konnte nicht geprüft werden",
	"The response of the sign-in service is not valid. Nothing has changed. Try again. If it happens " +
		"again, tell the people who run this app.": "Die Antwort des Anmeldedienstes ist ungültig. Es hat " +
		"sich nichts geändert. Versuchen Sie es noch einmal. Geschieht es wieder, sagen Sie es den " +
		"Betreibern dieser App.",
	"The sign-in service refused": "Der Anmeldedienst hat abgelehnt",
	"It did not complete the sign-in. Nothing has changed. Try again. If it happens again, tell the " +
		"people who run this app.": "Er hat die Anmeldung nicht abgeschlossen. Es hat sich nichts geändert. " +
		"Versuchen Sie es noch einmal. Geschieht es wieder, sagen Sie es den Betreibern dieser App.",
	"The sign-in service is temporarily unavailable": "Der Anmeldedienst ist vorübergehend nicht erreichbar",
	"You are signed in with another account":         "Sie sind mit einem anderen Konto angemeldet",
	"Another site started this sign-in, and it is for another account than yours. You are still signed " +
		"in. Sign out first if you want to change.": "Eine andere Website hat diese Anmeldung begonnen, und " +
		"zwar für ein anderes Konto als Ihres. Sie sind weiterhin angemeldet. Melden Sie sich zuerst ab, wenn " +
		"Sie wechseln wollen.",
	"You were signed out while signing in": "Sie wurden während der Anmeldung abgemeldet",
	"The sign-in service ended your session there before the sign-in here was complete. Start again.": "Der " +
		"Anmeldedienst hat Ihre Sitzung dort beendet, bevor die Anmeldung hier fertig war. Beginnen Sie noch " +
		"einmal.",
	"Send the browser to login_url as a top-level navigation.": "Rufen Sie login_url als Seite im Browser auf.",
	"Send the browser to login_url as a top-level navigation. A script or a prefetch cannot sign in.": "Rufen " +
		"Sie login_url als Seite im Browser auf. Ein Skript oder ein Vorabruf kann nicht anmelden.",
	"This endpoint must be opened by the browser": "Diese Adresse muss der Browser als Seite aufrufen",

	// Of a logout by the provider
	"The logout request has no matching iss and sid": "Die Abmeldung nennt keine passenden iss und sid",
	"It needs the iss and sid of this browser's session, in a frame whose page is of the same site.": "Sie " +
		"braucht iss und sid der Sitzung dieses Browsers, in einem Rahmen einer Seite derselben Website.",
	"The logout token is not valid": "Das Abmelde-Token ist ungültig",

	// Of any request
	"Forbidden":          "Nicht erlaubt",
	"Internal error":     "Interner Fehler",
	"Method not allowed": "Methode nicht erlaubt",
	"Not found":          "Nicht gefunden",
	"Only upgrades to WebSocket are supported": "Nur der Wechsel zu WebSocket wird unterstützt",
	"The path is ambiguous":                    "Der Pfad ist mehrdeutig",
	"Send the path without encoded dots, slashes, backslashes or empty segments.": "Senden Sie den Pfad ohne " +
		"kodierte Punkte, Schrägstriche, umgekehrte Schrägstriche und leere Abschnitte.",
	"The query has an access_token": "Die Adresse enthält ein access_token",
	"Leave it out: the access token is attached by the proxy.": "Lassen Sie es weg: Das Access-Token fügt " +
		"der Proxy hinzu.",
	"The request body cannot be read":     "Der Inhalt der Anfrage ist nicht lesbar",
	"The request body is too large":       "Der Inhalt der Anfrage ist zu groß",
	"The request cannot be forwarded":     "Die Anfrage kann nicht weitergeleitet werden",
	"The request took too long to arrive": "Die Anfrage kam zu langsam an",
	"The target or a header has a space or a control character that is not allowed.": "Die Adresse oder eine " +
		"Kopfzeile enthält ein Leer- oder Steuerzeichen, das nicht erlaubt ist.",
	"The request has a session and an access token": "Die Anfrage hat eine Sitzung und ein Access-Token",
	"Send only one of them.":                        "Senden Sie nur eines von beiden.",
	"The request may come from another site":        "Die Anfrage kommt vielleicht von einer anderen Website",
	"Send the header X-CSRF: 1 from a page of this origin.": "Senden Sie die Kopfzeile X-CSRF: 1 von einer " +
		"Seite dieser Website.",
	"The request names its host twice":        "Die Anfrage nennt ihren Host zweimal",
	"Send only the path in the request line.": "Senden Sie in der Anfragezeile nur den Pfad.",
	"The session lacks a scope that this route requires": "Der Sitzung fehlt eine Berechtigung, die diese " +
		"Adresse verlangt",
	"An API cannot be a service worker":          "Eine API kann kein Service Worker sein",
	"Serve the script from the app's own files.": "Liefern Sie das Skript aus den Dateien der App.",
	"This host is not served here":               "Dieser Host wird hier nicht bedient",
	"The Host header must be that of server.public_url.": "Die Kopfzeile Host muss der von " +
		"server.public_url entsprechen.",
	"If a development server such as Vite forwards requests to Cloakroom, set changeOrigin to false in " +
		"its proxy settings. Otherwise, open the address of server.public_url.": "Wenn ein " +
		"Entwicklungsserver wie Vite Anfragen an Cloakroom weiterleitet, setzen Sie changeOrigin in seinen " +
		"Proxy-Einstellungen auf false. Sonst öffnen Sie die Adresse von server.public_url.",
	"A parameter of the request is not valid":     "Ein Parameter der Anfrage ist ungültig",
	"The session has too many event streams open": "Die Sitzung hat zu viele Ereignisströme offen",
	"Close some, or share one between tabs.":      "Schließen Sie einige, oder teilen Sie einen zwischen Tabs.",
	"Too many requests":                           "Zu viele Anfragen",
	"Wait a moment, then try again.":              "Warten Sie einen Moment, und versuchen Sie es noch einmal.",

	// Of what is temporarily down
	"The API did not respond in time":      "Die API hat nicht rechtzeitig geantwortet",
	"The API failed to respond":            "Die API hat nicht geantwortet",
	"The API is temporarily unavailable":   "Die API ist vorübergehend nicht erreichbar",
	"The app is temporarily unavailable":   "Die App ist vorübergehend nicht erreichbar",
	"Sessions are temporarily unavailable": "Sitzungen sind vorübergehend nicht verfügbar",
	"Try again in a few seconds.":          "Versuchen Sie es in einigen Sekunden noch einmal.",
	"No session has ended. Try again in a few seconds.": "Keine Sitzung wurde beendet. Versuchen Sie es in " +
		"einigen Sekunden noch einmal.",
}
